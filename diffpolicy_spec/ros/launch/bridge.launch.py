"""Starts the lifecycle node, configures it and activates it.

    ros2 launch PATH/bridge.launch.py contract:=arm.yaml policy:=outputs/policy autostart:=true

PATH: python -c "import diffpolicy_spec.ros as r; print(r.__path__[0])"/launch. The node runs in the Python that
`python` names, or in the shell's python3, as of a virtual environment: it has to have diffpolicy_spec and ROS 2.
"""

import shutil
import sys

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, EmitEvent, RegisterEventHandler
from launch.events import matches_action
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode
from launch_ros.event_handlers import OnStateTransition
from launch_ros.events.lifecycle import ChangeState
from launch_ros.parameter_descriptions import ParameterValue
from lifecycle_msgs.msg import Transition

ARGUMENTS = {
    "contract": ("", "the contract's YAML file; there is no default"),
    "policy": ("lift", "a shipped policy's name, or the path of a checkpoint"),
    "device": ("cpu", "of the policy: cpu, cuda, ..."),
    "server": ("", "ws://host:port of a dps-serve, instead of a policy here"),
    "records": ("", "a file of JSON lines about what happens"),
    "autostart": ("false", "whether chunks are executed as soon as there are any, or after the service start"),
}


def generate_launch_description() -> LaunchDescription:
    """What `ros2 launch` asks for."""
    parameters = {
        name: ParameterValue(LaunchConfiguration(name), value_type=bool if name == "autostart" else str)
        for name in ARGUMENTS
    }
    node = LifecycleNode(
        executable=LaunchConfiguration("python"),
        arguments=["-m", "diffpolicy_spec.ros.lifecycle_node"],
        name=LaunchConfiguration("name"),
        namespace=LaunchConfiguration("namespace"),
        parameters=[parameters],
        output="screen",
        sigterm_timeout="10",  # it brings the robot to rest first
        sigkill_timeout="10",
    )

    def change(transition: int) -> EmitEvent:
        return EmitEvent(event=ChangeState(lifecycle_node_matcher=matches_action(node), transition_id=transition))

    configured = OnStateTransition(
        target_lifecycle_node=node,
        start_state="configuring",
        goal_state="inactive",
        entities=[change(Transition.TRANSITION_ACTIVATE)],
    )
    return LaunchDescription(
        [
            *(DeclareLaunchArgument(name, default_value=d, description=text) for name, (d, text) in ARGUMENTS.items()),
            DeclareLaunchArgument("name", default_value="policy_bridge", description="of the node"),
            DeclareLaunchArgument("namespace", default_value="", description="of the node"),
            DeclareLaunchArgument(
                "python", default_value=shutil.which("python3") or sys.executable, description="that runs it"
            ),
            RegisterEventHandler(configured),
            node,
            change(Transition.TRANSITION_CONFIGURE),
        ]
    )
