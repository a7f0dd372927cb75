#!/bin/busybox sh
# The first process of a guest: sets it up, runs the tests, powers off.
# The host reads what is between the lines of `marker` (xtask/src/vm/console.rs).

/bin/busybox --install -s
export PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root RUST_BACKTRACE=1

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount -t tracefs tracefs /sys/kernel/tracing

# The kernel logs to the other port, so that its messages don't mix with our lines.
stty -F /dev/ttyS0 -onlcr
exec </dev/null >/dev/ttyS0 2>&1

for controller in $(cat /sys/fs/cgroup/cgroup.controllers); do
    echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control
done
while read -r module; do
    modprobe "$module" || echo "init: module $module does not load"
done </guest/modules
# After the modules: configfs is one, loaded with null_blk.
mount -t configfs configfs /sys/kernel/config
hostname guest
ip link set lo up

marker() { echo ":::guest $*"; }

marker check begin
cgmeter check
marker check end $?

export CGMETER_BIN=/usr/bin/cgmeter CGMETER_NOTES=/tmp/notes CGMETER_EMULATED=true CGMETER_DONE=/guest/done
CGMETER_TIER=$(cat /guest/tier)
export CGMETER_TIER
set -- --test-threads=1 --color=never
[ -s /guest/filter ] && set -- "$@" "$(cat /guest/filter)"
marker tests begin
live "$@"
marker tests end $?

marker notes begin
[ -e /tmp/notes ] && cat /tmp/notes
marker notes end 0

sync
poweroff -f
