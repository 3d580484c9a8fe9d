#!/bin/sh
# Tests of the ROS bridge against the real thing: roscore and rosbridge_suite's own server, with an arm that is a rospy
# node. Everything of ROS is Debian's (bookworm and later); rosbridge is not packaged there and runs from its source.
#
#     sh tools/ros1/run.sh [ROSBRIDGE_SOURCE] [arguments of pytest]
#
# ROSBRIDGE_SOURCE: a checkout of github.com/RobotWebTools/rosbridge_suite that has the branch ros1 (made with git clone
# where none is named). As root the packages that are missing are installed; otherwise they are named. It takes no port
# that is in use, and leaves nothing behind but the packages.
set -e
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
work=$(mktemp -d)
pids=
cleanup() {
  for pid in $pids; do kill "$pid" 2>/dev/null || true; done
  [ ! -e "$work/rosbridge.pid" ] || kill "$(cat "$work/rosbridge.pid")" 2>/dev/null || true
  for pid in $pids; do wait "$pid" 2>/dev/null || true; done
  rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

packages="python3-rospy python3-roslaunch python3-rosmaster python3-rostopic python3-rosservice python3-rosnode
python3-genpy python3-roslib rosout python3-std-msgs python3-std-srvs python3-sensor-msgs python3-geometry-msgs
python3-trajectory-msgs python3-diagnostic-msgs python3-rosgraph-msgs ros-std-msgs ros-rosgraph-msgs python3-autobahn
python3-twisted python3-tornado python3-bson python3-pil"
missing=
for package in $packages; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q '^install ok' || missing="$missing $package"
done
if [ -n "$missing" ]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get install -y --no-install-recommends $missing >"$work/apt.log" 2>&1 ||
      { apt-get update >/dev/null && apt-get install -y --no-install-recommends $missing; }
  else
    echo "These packages of Debian are missing: apt-get install --no-install-recommends$missing" >&2
    exit 2
  fi
fi

# rosbridge's source, branch ros1
mkdir "$work/rosbridge"
case ${1:-} in
  '' | -*) git clone -q --depth 1 -b ros1 https://github.com/RobotWebTools/rosbridge_suite "$work/clone"
           source=$work/clone ;;
  *) source=$1; shift ;;
esac
if [ -d "$source/rosbridge_server/scripts" ] && grep -q rospy "$source"/rosbridge_server/scripts/rosbridge_websocket.py; then
  cp -r "$source"/ros* "$work/rosbridge"
else
  for branch in ros1 origin/ros1 ''; do
    [ -n "$branch" ] || { echo "$source has neither the files nor the branch ros1 of rosbridge_suite" >&2; exit 2; }
    git -C "$source" rev-parse -q --verify "$branch" >/dev/null 2>&1 || continue
    git -C "$source" archive "$branch" | tar -x -C "$work/rosbridge"
    break
  done
fi

# Its messages are generated; the manifests that Debian has only in packages for C++ are written, as rosbridge looks for
# them. rosauth is not packaged, and only imported: its service has the fields that rosbridge calls it with.
modules=$work/modules
mkdir -p "$modules" "$work/share" "$work/rosauth"
cat >"$work/rosauth/Authentication.srv" <<END
string mac
string client
string dest
string rand
time t
string level
time end
---
bool authenticated
END
generate() { # KIND PACKAGE FILES...
  kind=$1 package=$2
  shift 2
  mkdir -p "$modules/$package/$kind"
  [ -e "$modules/$package/__init__.py" ] || : >"$modules/$package/__init__.py"
  for file in "$@"; do
    /usr/bin/python3 "/usr/lib/genpy/gen${kind}_py.py" -p "$package" -o "$modules/$package/$kind" \
      -Istd_msgs:/usr/share/std_msgs/msg -Irosapi:"$work/rosbridge/rosapi/msg" \
      -Irosbridge_msgs:"$work/rosbridge/rosbridge_msgs/msg" "$file"
  done
  /usr/bin/python3 "/usr/lib/genpy/gen${kind}_py.py" --initpy -p "$package" -o "$modules/$package/$kind"
}
cp -r "$work/rosbridge/rosbridge_library/src/rosbridge_library" "$work/rosbridge/rosbridge_server/src/rosbridge_server" \
  "$work/rosbridge/rosapi/src/rosapi" "$modules"
generate msg rosbridge_msgs "$work"/rosbridge/rosbridge_msgs/msg/*.msg
generate srv rosauth "$work/rosauth/Authentication.srv"
generate msg rosapi "$work"/rosbridge/rosapi/msg/*.msg
generate srv rosapi "$work"/rosbridge/rosapi/srv/*.srv
for package in std_msgs std_srvs sensor_msgs geometry_msgs trajectory_msgs diagnostic_msgs rosgraph_msgs roscpp rosapi \
  rosbridge_msgs rosbridge_library rosbridge_server rosauth; do
  mkdir -p "$work/share/$package"
  cat >"$work/share/$package/package.xml" <<END
<package><name>$package</name><version>1.0.0</version><description>-</description>
<maintainer email="nobody@example.org">-</maintainer><license>-</license></package>
END
done

free_port() {
  /usr/bin/python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}
wait_for_port() { # PORT NAME LOG
  for _ in $(seq 300); do
    /usr/bin/python3 -c "import socket; socket.create_connection(('127.0.0.1', $1), 1).close()" 2>/dev/null && return
    sleep 0.1
  done
  echo "$2 did not start:" >&2
  tail -n 30 "$3" >&2
  exit 1
}
ros() { # in the background: becomes the command; of the system's Python, apart from the project's
  exec env -u PYTHONHOME -u VIRTUAL_ENV PYTHONPATH="$modules" PYTHONUNBUFFERED=1 PATH=/usr/bin:/bin \
    ROS_PACKAGE_PATH="$work/share:/usr/share" ROS_MASTER_URI="http://127.0.0.1:$master" ROS_IP=127.0.0.1 \
    ROS_HOME="$work/home" "$@"
}
master=$(free_port)
ros roscore -p "$master" >"$work/roscore.log" 2>&1 &
pids="$pids $!"
wait_for_port "$master" roscore "$work/roscore.log"
port=$(free_port)
serve() { # rosbridge, again when it ends: a test kills it
  while :; do
    ros /usr/bin/python3 "$work/rosbridge/rosbridge_server/scripts/rosbridge_websocket.py" --port "$port" \
      --address 127.0.0.1 >>"$work/rosbridge.log" 2>&1 &
    echo $! >"$work/rosbridge.pid"
    wait $! || true
    sleep 1
  done
}
serve &
pids="$pids $!"
ros /usr/bin/python3 "$work/rosbridge/rosapi/scripts/rosapi_node" >"$work/rosapi.log" 2>&1 &
pids="$pids $!"
ros /usr/bin/python3 "$here/robot.py" >"$work/robot.log" 2>&1 &
pids="$pids $!"
wait_for_port "$port" rosbridge "$work/rosbridge.log"
echo "roscore on port $master, rosbridge on port $port: $(/usr/bin/rosversion roslaunch 2>/dev/null || echo ROS 1)"

status=0
(cd "$root" && ROS_BRIDGE_URL="ws://127.0.0.1:$port" ROS_BRIDGE_PID="$work/rosbridge.pid" \
  "$python" -m pytest tests/ros/test_ros_real.py "$@") || status=$?
if [ "$status" != 0 ]; then
  for log in rosbridge rosapi robot; do
    echo "--- the end of $log's log"
    tail -n 60 "$work/$log.log"
  done
fi
exit "$status"
