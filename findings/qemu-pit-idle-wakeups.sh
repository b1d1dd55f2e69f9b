#!/bin/sh
# "noapictimer" saves an emulated guest the calibration of its local APIC timer, 100 ms of its start; one CPU needs no such timer. With no HPET the
# kernel then keeps time with the PIT (i8254), which is tickless as well ("one shot"). One expects an idle guest to wake at most every 55 ms
# by it, the range of a counter of 16 bits at 1.19 MHz; the kernel uses half of it (0x7fff ticks), so every idle guest wakes 36 times a second, for
# ever, and each time both QEMU's CPU thread and its main loop with it. With the local APIC's timer it wakes a few times a
# second.
#
# Seen with QEMU 7.2 (1:7.2+dfsg-7+deb12u18+b3), linux-image-6.1.0-50-cloud-amd64 6.1.176-1 and busybox-static 1:1.35.0-4+deb12u1+b1 of Debian 12,
# emulated (TCG), machine q35 without HPET, one CPU, a guest with nothing but one "sleep 10":
#   noapictimer: longest pause of the pit 27461861 ns, timer interrupts in 10 s: 426
#   without it:  longest pause of the lapic 34601394592 ns (34 s), timer interrupts in 10 s: 91
# Expected: a tickless guest that has nothing to do is left alone for seconds, whatever its timer.
set -eu

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
for package in linux-image-6.1.0-50-cloud-amd64=6.1.176-1 busybox-static=1:1.35.0-4+deb12u1+b1; do
    apt-get download -qq "$package" >/dev/null 2>&1 || { echo "$package cannot be had (apt-get update?)" >&2; exit 1; }
done
for package in ./*.deb; do dpkg -x "$package" root; done
command -v qemu-system-x86_64 >/dev/null || { echo "needs qemu-system-x86 of Debian 12" >&2; exit 1; }
qemu-system-x86_64 --version | head -n 1

mkdir -p tree/bin tree/proc tree/dev
cp root/bin/busybox tree/bin/
cat >tree/init <<'INIT'
#!/bin/busybox sh
busybox mount -t proc proc /proc
interrupts() { # of timers: line 0 and the local ones
    busybox awk '$1 == "0:" || $1 == "LOC:" { all += $2 } END { print all }' /proc/interrupts
}
busybox sleep 5
before=$(interrupts)
busybox sleep 10
after=$(interrupts)
echo "longest $(busybox awk '$1 == "Clock" && $2 == "Event" { device = $4 } $1 == "max_delta_ns:" { print device, $2 }' /proc/timer_list | busybox tail -n 1)"
echo "woken $((after - before))"
busybox poweroff -f
INIT
chmod +x tree/init
(cd tree && find . | "$work/root/bin/busybox" cpio -o -H newc 2>/dev/null) >initrd

guest() { # WORDS for the kernel: what it prints
    timeout 120 qemu-system-x86_64 -nodefaults -display none -no-reboot -machine q35,hpet=off -accel tcg -cpu max -smp 1 -m 256M \
        -kernel root/boot/vmlinuz-* -initrd initrd -append "console=ttyS0 quiet no_timer_check tsc=reliable $1" -serial stdio </dev/null |
        tr -d '\r' | grep -E '^(longest|woken) '
}
with=$(guest noapictimer)
without=$(guest '')
echo "noapictimer: $(echo $with)"
echo "without it: $(echo $without)"
woken() { echo "$1" | sed -n 's/^woken //p'; }
case $with in *"longest pit 27461861"*) ;; *) echo "this has changed" >&2; exit 1 ;; esac
[ "$(woken "$with")" -gt 300 ] && [ "$(woken "$without")" -lt 200 ] || { echo "this has changed" >&2; exit 1; }
