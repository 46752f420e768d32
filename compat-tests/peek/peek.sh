# shellcheck shell=bash disable=SC2154 # the variables come from the derivation
# A look from inside the sandbox, as a derivation's builder.
#
# The builder is a static bash, this file its first argument. The derivation's environment has `bash` (the builder), `busybox` (a
# static busybox in a directory of the store) and `out`. Everything that a builder can see or do and that a daemon decides is written to standard output, that
# is, to the build log, between two marks; the output itself holds always the same two bytes, so that the same builder serves
# as a fixed-output derivation (flat, sha256 of "ok"). Nothing here depends on time, inode numbers, host process ids or the
# name of the machine, so two daemons that offer the same sandbox give the same report, byte for byte.
#
# `peek.scm` runs it through whatever daemon GUIX_DAEMON_SOCKET names, with an unmodified client; `peek-run.sh` compares.
bb=$busybox
host_root=; [ -d /usr ] && host_root=yes  # --disable-chroot: most of what shows is no affair of the daemon
mask() { # values that differ from one build to the next
    "$bb" sed -E 's/(pipe|socket|anon_inode):\[[0-9]+\]/\1:[N]/g'
}
mask_processes() { # in a sandbox the numbers are always the same; outside, each daemon and each build has others
    if [ $host_root ]; then "$bb" sed -E '/^(PPid|NS[a-z]+:|pid|pgrp)/s/[0-9]+/N/; s/(parent|session|sid:\t) ?[0-9]+/\1 N/'; else "$bb" cat; fi
}
section() { echo "== $1"; }
attempt() { # what: command... ; says only whether it went, and why not
    local what=$1 text; shift
    if text=$("$@" 2>&1 </dev/null); then echo "$what: ok"; else
        text=${text##*$'\n'}; echo "$what: ${text##*: }"; fi
}
echo "PEEK-BEGIN"
section "environment, in order"
"$bb" tr '\0' '\n' < /proc/$$/environ
section "arguments"
"$bb" tr '\0' '\n' < /proc/$$/cmdline
section "identity"
"$bb" id
"$bb" id -un; "$bb" id -gn
# The shell reads this itself: a child would see it in the middle of something. Signals 32 and 33 are the C library's own; whether they are
# ignored depends on who started the daemon, unless the daemon resets them.
while read -r line; do
    case ${line%%:*} in
        SigIgn) printf 'SigIgn:\t%016x\n' "$((16#${line##*[!0-9a-f]} & ~0x180000000))";;
        Umask|State|Ngid|PPid|TracerPid|Uid|Gid|FDSize|Groups|NStgid|NSpid|NSpgid|NSsid|Threads|Sig[PBIC]*|Shd*|Cap*|NoNewPrivs|Seccomp*|Speculation*|Cpus_allowed_list|Mems_allowed_list|CoreDumping|THP_enabled)
            echo "$line";;
    esac
done < /proc/$$/status > "$TMPDIR/status"
mask_processes < "$TMPDIR/status"
"$bb" rm "$TMPDIR/status"
section "user namespace"
"$bb" cat /proc/$$/uid_map /proc/$$/gid_map /proc/$$/setgroups
section "process"
echo "pid $$ parent $PPID" | mask_processes
read -r line < /proc/$$/stat
set -- ${line##*) }
echo "pgrp $3 session $4 tty $5 tpgid $6 priority ${16} nice ${17} policy ${39}" | mask_processes
for f in personality oom_score_adj coredump_filter loginuid sessionid autogroup; do
    echo "$f: $("$bb" cat /proc/$$/$f 2>&1 | "$bb" sed 's/autogroup-[0-9]*/autogroup-N/')"; done
echo "umask $(umask)"
echo "cwd $("$bb" readlink /proc/$$/cwd) root $("$bb" readlink /proc/$$/root)"
section "processes"
for p in /proc/[0-9]*; do echo "${p#/proc/}"; done | "$bb" head -n 1
section "open files"
for f in /proc/$$/fd/*; do
    # bash keeps its script open above 200
    n=${f##*/}; [ -L "$f" ] || continue; [ "$n" -ge 200 ] 2>/dev/null && continue
    echo "$n $("$bb" readlink "$f") $("$bb" grep flags /proc/$$/fdinfo/$n | "$bb" tr -d '\t')"
done | mask
for n in 0 1 2; do [ -t $n ] && echo "$n is a terminal"; done
attempt "read of standard input" "$bb" head -c 1 /dev/stdin
section "limits"
"$bb" cat /proc/$$/limits | "$bb" grep -v 'pending signals'
section "names"
"$bb" uname -a
"$bb" hostname; "$bb" cat /proc/sys/kernel/hostname /proc/sys/kernel/domainname
section "mounts: where, options, type, options of the file system"
# The root of a bind mount and the device are the host's affair.
[ $host_root ] ||
"$bb" awk '{ i = 7; while ($i != "-") i++; shared = ""; for (j = 7; j < i; j++) shared = shared " " $j;
  super = $(i+3); gsub(/size=[0-9]+k|nr_inodes=[0-9]+/, "SIZE", super);
  print $5, $6 shared, $(i+1), super }' /proc/$$/mountinfo
[ $host_root ] || {
section "files"
"$bb" find / -path /proc -prune -o -path "$NIX_STORE" -prune -o -path /dev/pts -prune -o -print | "$bb" sort | while read -r f; do
    t=; [ -L "$f" ] && t=" -> $("$bb" readlink "$f")"
    size=; [ -f "$f" ] && [ ! -L "$f" ] && size=" $("$bb" stat -c %s "$f")"
    echo "$("$bb" stat -c '%A %h %u %g %t,%T %n' "$f")$size$t"
done
for f in /dev/pts /dev/pts/*; do "$bb" stat -c '%A %u %g %t,%T %n' "$f"; done
section "store"
"$bb" stat -c '%A %u %g %n' "$NIX_STORE"
for f in "$NIX_STORE"/* "$NIX_STORE"/.[!.]*; do { [ -e "$f" ] || [ -L "$f" ]; } && "$bb" stat -c '%A %h %u %g %Y %N' "$f"; done | "$bb" sed -E 's/^(l.*) [0-9]{6,} /\1 now /'
section "/etc"
for f in /etc/*; do echo "-- $f"; "$bb" cat "$f"; done
}
section "network"
"$bb" tail -n +3 /proc/net/dev | "$bb" awk '{ print $1 }'
"$bb" ip addr 2>&1 | "$bb" sed -E 's/link\/ether [0-9a-f:]+/link\/ether MAC/; s/@if[0-9]+//'
"$bb" cat /proc/net/route /proc/net/if_inet6 2>&1 | "$bb" sed -E 's/ +/ /g'
[ $host_root ] || echo "unix sockets: $("$bb" tail -n +2 /proc/net/unix | "$bb" wc -l)"
for f in ipv4/ip_unprivileged_port_start ipv4/ping_group_range ipv4/conf/all/route_localnet ipv6/conf/lo/disable_ipv6; do
    echo "$f: $("$bb" cat /proc/sys/net/$f 2>&1)"; done
attempt "listen and connect on 127.0.0.1" "$bash" -c '"$busybox" timeout 2 "$busybox" nc -l -p 7777 > /dev/null & "$busybox" sleep 0.5; : > /dev/tcp/127.0.0.1/7777'
attempt "connect to 192.0.2.1" "$bb" timeout 2 "$bash" -c ': > /dev/tcp/192.0.2.1/80'
section "communication between processes"
"$bb" cat /proc/sysvipc/shm /proc/sysvipc/sem /proc/sysvipc/msg
for f in shmmax shmall shmmni msgmax msgmnb msgmni sem; do echo "$f: $("$bb" cat /proc/sys/kernel/$f)"; done
section "attempts"
attempt "write /" "$bb" touch /x
attempt "write /etc" "$bb" touch /etc/x
attempt "append to /etc/passwd" "$bash" -c 'echo >> /etc/passwd'
attempt "write /tmp" "$bb" touch /tmp/x
attempt "write /dev" "$bb" touch /dev/x
attempt "write /dev/shm" "$bb" touch /dev/shm/x
attempt "write into the store" "$bb" touch "$NIX_STORE/x"
attempt "make a directory in the store" "$bb" mkdir "$NIX_STORE/d"
attempt "chmod the store" "$bb" chmod 777 "$NIX_STORE"
attempt "append to an input" "$bash" -c 'echo >> "$busybox"'
attempt "chmod an input" "$bb" chmod 755 "$bb"
attempt "remove an input" "$bb" rm -f "$bb"
attempt "hard link to an input" "$bb" ln "$bb" "$NIX_STORE/l"
attempt "write the parent of the build directory" "$bb" touch "$TMPDIR/../y"
attempt "set-user-id bit" "$bb" chmod 4755 /tmp/x
attempt "device node" "$bb" mknod /tmp/n c 1 3
attempt "mount" "$bb" mount -t tmpfs tmpfs /tmp
attempt "remount an input writable" "$bb" mount -o remount,rw,bind none "${bb%/*}"
attempt "unmount an input" "$bb" umount "${bb%/*}"
attempt "unmount /proc" "$bb" umount /proc
attempt "chroot" "$bb" chroot /tmp /x
attempt "set the host name" "$bb" hostname other
attempt "change owner" "$bb" chown 0 /tmp/x
attempt "unshare mounts" "$bb" unshare -m "$bb" true
attempt "unshare users" "$bb" unshare -r "$bb" true
attempt "unshare users and mounts, unmount an input" "$bb" unshare -r -m "$bb" umount "${bb%/*}"
attempt "raise the priority" "$bb" renice -n -5 -p $$
attempt "raise a limit" "$bash" -c 'ulimit -Hn 100000000'
attempt "signal process 1" "$bb" kill -0 1
attempt "/dev/tty" "$bash" -c ': < /dev/tty'
attempt "/dev/kvm" "$bash" -c ': < /dev/kvm'
attempt "/dev/ptmx" "$bash" -c ': <> /dev/ptmx'
attempt "/dev/full" "$bash" -c 'echo > /dev/full'
attempt "kernel log" "$bb" dmesg
attempt "core pattern" "$bash" -c 'echo x > /proc/sys/kernel/core_pattern'
attempt "sysrq" "$bash" -c 'echo x > /proc/sysrq-trigger'
attempt "kernel memory" "$bb" head -c 1 /proc/kcore
attempt "set the clock" "$bb" date -s 2020-01-01
echo "PEEK-END"
printf ok > "$out"
