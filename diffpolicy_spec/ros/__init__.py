"""The ROS bridge: a control loop whose robot is a set of topics. Imports without ROS."""
