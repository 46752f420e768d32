"""machine.py WORK [PART...]: see machine.sh.  WORK has one.img and t.tar."""

import os
import random
import re
import shutil
import socket
import subprocess
import sys
import time

WORK = os.path.abspath(sys.argv[1])
FIRMWARE = "/usr/share/OVMF/OVMF_CODE_4M.fd"
VARIABLES = "/usr/share/OVMF/OVMF_VARS_4M.fd"
BOOT = float(os.environ.get("BOOT_TIMEOUT", "900"))
READY = b"fruix: system is ready: "
PROMPT = b"#@# "


class Failed(Exception):
    """What was expected did not come."""


def overlay(path, backing, kind):
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", kind, "-b", backing, path], check=True)


class Guest:
    """A machine with a disk of its own, `NAME.qcow2` in WORK; its console is a socket and a log."""

    def __init__(self, name, disk, backing=None, kind="qcow2", incoming=None):
        self.name, self.disk = name, disk
        if backing:
            if os.path.exists(disk):
                os.remove(disk)
            overlay(disk, backing, kind)
        self.variables = f"{WORK}/{name}.vars"
        shutil.copy(incoming + ".vars" if incoming else VARIABLES, self.variables)
        paths = [f"{WORK}/{name}.{what}" for what in ("con", "mon")]
        for path in paths:
            if os.path.exists(path):
                os.remove(path)
        self.log = open(f"{WORK}/{name}.log", "ab")
        command = ["qemu-system-x86_64", "-accel", "tcg", "-machine", "pc-i440fx-7.2", "-cpu", "max,la57=off", "-m", "768", "-nodefaults",
                   "-display", "none", "-drive", f"if=pflash,format=raw,readonly=on,file={FIRMWARE}",
                   "-drive", f"if=pflash,format=raw,file={self.variables}", "-device", "virtio-rng-pci", "-nic", "none",
                   # A disk that keeps what it has taken: UFS asks none to flush, and an overlay of qemu's would lose what a real one may lose, too.
                   "-drive", f"if=none,id=d0,format=qcow2,cache=writethrough,file={disk}", "-device", "virtio-blk-pci,drive=d0",
                   "-chardev", f"socket,id=c,path={paths[0]},server=on,wait=on", "-serial", "chardev:c",
                   "-chardev", f"socket,id=m,path={paths[1]},server=on,wait=off", "-mon", "chardev=m,mode=readline"]
        command += ["-drive", f"if=none,id=d1,format=raw,readonly=on,file={WORK}/t.tar", "-device", "virtio-blk-pci,drive=d1"]
        if incoming:
            command += ["-incoming", f"exec:cat {incoming}"]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        self.console = self.connect(paths[0])
        self.monitor_path = paths[1]
        self.seen = b""

    def connect(self, path):
        for _ in range(400):
            try:
                there = socket.socket(socket.AF_UNIX)
                there.connect(path)
                return there
            except OSError:
                if self.process.poll() is not None:
                    raise Failed("qemu ended") from None
                time.sleep(0.05)
        raise Failed(f"no socket {path}")

    def monitor(self, *commands):
        there = self.connect(self.monitor_path)
        there.settimeout(300)

        def answer():
            text = b""
            while b"(qemu) " not in text:
                block = there.recv(65536)
                if not block:
                    return text
                text += block
            return text

        said = answer()
        for command in commands:
            there.sendall(command.encode() + b"\n")
            said = answer()
        there.close()
        return said

    def expect(self, *wanted, timeout=BOOT):
        """Waits until one of the byte strings comes; which, and what came before it."""
        deadline = time.monotonic() + timeout
        while True:
            found = [(self.seen.find(word), number) for number, word in enumerate(wanted) if word in self.seen]
            if found:
                position, number = min(found)
                before = self.seen[:position]
                self.seen = self.seen[position + len(wanted[number]):]
                return number, before
            left = deadline - time.monotonic()
            if left <= 0:
                raise Failed(f"{self.name}: none of {wanted} in {timeout} s; the end: {self.seen[-1500:]!r}")
            self.console.settimeout(left)
            try:
                block = self.console.recv(65536)
            except TimeoutError:
                continue
            if not block:
                raise Failed(f"{self.name}: qemu ended; the end: {self.seen[-1500:]!r}")
            self.log.write(block)
            self.log.flush()
            self.seen += block

    def login(self, timeout=BOOT):
        """Waits for the marker and logs in; how long the marker took, and what the console said."""
        begun = time.monotonic()
        _, said = self.expect(READY, timeout=timeout)
        seconds = time.monotonic() - begun
        self.expect(b"login: ", timeout=300)
        self.console.sendall(b"root\n")
        self.expect(b"# ", timeout=120)
        # What is typed is shown, too, so it must not look like what is waited for.
        self.console.sendall(b"PS1='#@''# '\n")
        self.expect(PROMPT, timeout=60)
        return seconds, said.decode("utf-8", "replace")

    def run(self, command, timeout=900, status=0):
        """Runs a command of less than 200 bytes; what it said. `status' None: whatever it is."""
        self.console.sendall(b"echo \"=<\"\"=\"; " + command.encode() + b"; echo \"=@\"\"=$?=\"\n")
        self.expect(b"=<=\r\n", timeout=timeout)
        _, said = self.expect(b"=@=", timeout=timeout)
        _, code = self.expect(b"=", timeout=60)
        self.expect(PROMPT, timeout=60)
        said = said.decode("utf-8", "replace").replace("\r", "")
        if status is not None and int(code) != status:
            raise Failed(f"{self.name}: `{command}' ended with {int(code)}: {said[-3000:]}")
        return said

    def reboot(self, timeout=BOOT):
        """Starts again in order, until it is ready."""
        self.console.sendall(b"shutdown -r now\n")
        return self.login(timeout)

    def cut(self):
        """The power goes."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.console.close()

    def freeze(self, state):
        """Writes the running machine to the file `state', and ends it; its disk is kept beside."""
        said = self.monitor("migrate_set_parameter max-bandwidth 4G", f"migrate \"exec:cat >{state}.new\"", "info migrate")
        while b"completed" not in said:
            if b"failed" in said:
                raise Failed(f"no snapshot: {said!r}")
            time.sleep(0.5)
            said = self.monitor("info migrate")
        self.monitor("quit")
        self.cut()
        shutil.copy(self.variables, f"{state}.vars")
        os.rename(f"{state}.new", state)


def check(true, what):
    if not true:
        raise Failed(what)


def keys(text):
    return dict(re.findall(r"^([a-z_]+)=(.*)$", text, re.M))


class Systems:
    """The closures that `prepare' has made."""

    def __init__(self):
        with open(f"{WORK}/systems") as lines:
            self.__dict__.update(keys(lines.read()))


def is_running(guest, closure, version):
    said = guest.run("readlink /run/current-system /run/booted-system; uname -v")
    check(said.count(closure) == 2 and version in said, f"not {closure} with {version}: {said}")


def lasting(guest):
    return guest.run("readlink /boot/system").strip()


def version(guest):
    return guest.run("uname -v").strip()


def prepare():
    guest = Guest("prepare", f"{WORK}/prepared.qcow2", f"{WORK}/one.img", "raw")
    try:
        seconds, _ = guest.login()
        print(f"prepare: ready after {seconds:.0f} s")
        lines = [f"one={guest.run('readlink /run/current-system').strip()}", f"version_one={version(guest)}"]
        begun = time.monotonic()
        guest.run("cd / && tar xf /dev/vtbd1 && sync", timeout=1800)
        for name in ("two", "three", "fstab", "hangs"):
            said = guest.run(f"fruix system build -q /t/{name}.toml", timeout=3600)
            lines.append(f"{name}={keys(said)['closure_path']}")
        print(f"prepare: the machine built them in {time.monotonic() - begun:.0f} s")
        for name in ("two", "three", "fstab", "hangs"):
            closure = dict(line.split("=", 1) for line in lines)[name]
            guest.run(f"ln -s {closure} /frx/var/gcroots/keep-{name}")
        guest.run("rm -f /t/fruix*; sync; sleep 1; sync")
        with open(f"{WORK}/systems", "w") as out:
            out.write("\n".join(lines) + "\n")
        guest.freeze(f"{WORK}/booted")
        os.chmod(guest.disk, 0o444)
    finally:
        guest.cut()


def resumed(name):
    """The prepared machine, as it runs, somebody logged in; with a disk of its own."""
    guest = Guest(name, f"{WORK}/{name}.qcow2", f"{WORK}/prepared.qcow2", incoming=f"{WORK}/booted")
    # What is typed before the state is read is lost.
    for _ in range(60):
        guest.console.sendall(b"\n")
        try:
            guest.expect(PROMPT, timeout=3)
            break
        except Failed:
            pass
    time.sleep(1)
    guest.run(":")
    return guest


def generations():
    systems = Systems()
    guest = resumed("generations")
    try:
        check(systems.version_one in version(guest), "another kernel than expected")
        begun = time.monotonic()
        said = guest.run(f"fruix system switch-generation {systems.two}")
        print(f"generations: the second system was deployed in {time.monotonic() - begun:.0f} s")
        check("reboot_needed=yes" in said and "fallback=yes" in said, f"a deployment says {said}")
        check(guest.run("readlink /run/current-system").strip() == systems.two, "the second system is not current")
        check(lasting(guest) == systems.one, "the second system lasts before it was up")
        guest.run("cat /usr/local/etc/two")
        seconds, _ = guest.reboot()
        two = version(guest)
        print(f"generations: started again, ready after {seconds:.0f} s: {two}")
        check(two != systems.version_one, "the second system has the kernel of the first")
        is_running(guest, systems.two, two)
        check(lasting(guest) == systems.two, "the second system has been up and does not last")
        guest.run("cat /var/lib/fruix/ready; ! test -e /boot/nextboot.conf")
        guest.run("fruix system rollback")
        # On trial again: the second system is the one that would be started if this failed.
        guest.run("test -e /usr/local/etc/two")
        seconds, _ = guest.reboot()
        print(f"generations: rolled back and started again, ready after {seconds:.0f} s: {version(guest)}")
        is_running(guest, systems.one, systems.version_one)
        check(lasting(guest) == systems.one, "the first system has been up again and does not last")
        guest.run("! test -e /usr/local/etc/two")
        # What somebody chooses at the loader's prompt.
        guest.console.sendall(b"shutdown -r now\n")
        guest.expect(b"Hit [Enter]")
        guest.console.sendall(b" ")
        guest.expect(b"OK ", timeout=60)
        guest.console.sendall(b"generation 2\r")
        guest.login()
        is_running(guest, systems.two, two)
        check(lasting(guest) == systems.two, "what was chosen at the loader does not last")
        guest.run("cat /usr/local/etc/two")
        guest.run("fruix system rollback && fruix system list-generations")
        guest.reboot()
        is_running(guest, systems.one, systems.version_one)
        # Collecting garbage: what generations need stays, what one needed that is deleted goes.
        guest.run("rm /frx/var/gcroots/keep-*; rm -rf /t; fruix gc", timeout=1800)
        guest.run(f"test -e {systems.two}/boot/kernel/kernel && ! test -e {systems.three}")
        guest.run("fruix system delete-generations 2 && fruix gc", timeout=1800)
        guest.run(f"! test -e {systems.two} && test -e {systems.one}/boot/kernel/kernel")
        guest.run("! test -e /boot/generations/2.conf")
        guest.reboot()
        is_running(guest, systems.one, systems.version_one)
        print("generations: there and back, chosen at the loader, and what was deleted is freed")
    finally:
        guest.cut()


def fallback():
    systems = Systems()
    two = systems.two
    # What is broken, the system, how, and what the console must say. Without libc nothing can be run any more: the power goes when it is on the disk.
    cases = [
        ("no init", two, f"mv $(realpath {two}/profile/sbin/init) /var/init; sync; reboot -q", "no init"),
        ("init that is no program", two, f"echo no >$(realpath {two}/profile/sbin/init); sync; reboot -q", "no init"),
        ("no kernel", two, f"mv $(realpath {two}/boot/kernel/kernel) /var/kernel; sync; reboot -q", "the kernel on trial cannot be loaded"),
        ("half a kernel", two, f"truncate -s 3000000 $(realpath {two}/boot/kernel/kernel); sync; reboot -q", ""),
        ("no libc", two, f"sed -i '' 's/trial_seconds=.*/trial_seconds=\"60\"/' /boot/nextboot.conf; mv $(realpath {two}/profile/lib/libc.so.7) /var/libc", "not ready after 60"),
        ("wrong fstab", systems.fstab, "reboot -q", "not ready after 60 seconds"),
        ("rc hangs", systems.hangs, "reboot -q", "not ready after 60 seconds"),
    ]
    only = os.environ.get("ONLY")
    for what, closure, break_it, words in cases:
        if only and not any(word in what for word in only.split(",")):
            continue
        guest = resumed("fallback")
        try:
            guest.run(f"fruix system switch-generation {closure}")
            begun = time.monotonic()
            for part in break_it.split("; "):
                guest.console.sendall(part.encode() + b"\n")
                time.sleep(1)
            if "reboot" not in break_it:
                time.sleep(45)
                guest.monitor("system_reset")
            seconds, said = guest.login()
            check(words in said, f"{what}: the console does not say `{words}': {said[-3000:]}")
            is_running(guest, systems.one, systems.version_one)
            check(lasting(guest) == systems.one, f"{what}: it lasts")
            said = guest.run("fruix system list-generations; ! test -e /usr/local/etc/two")
            check(re.search(rf"current=yes lasts=yes .*{systems.one}", said), f"{what}: {said}")
            print(f"fallback: {what}: back, without a hand, after {time.monotonic() - begun:.0f} s", flush=True)
        finally:
            guest.cut()


def cuts():
    systems = Systems()
    seed = int(os.environ.get("SEED", str(int(time.time()))))
    name = f"cuts-{seed}"
    turns = int(os.environ.get("CUTS", "30"))
    chance = random.Random(seed)
    # How long it takes undisturbed.
    guest = resumed(name)
    try:
        begun = time.monotonic()
        guest.run(f"fruix system switch-generation {systems.two}")
        took = time.monotonic() - begun
    finally:
        guest.cut()
    print(f"cuts: seed {seed}; a deployment takes {took:.1f} s", flush=True)
    count = {"one": 0, "two": 0}
    for turn in range(1, turns + 1):
        moment = chance.uniform(0, took * 1.2)
        guest = resumed(name)
        try:
            guest.console.sendall(f"fruix system switch-generation {systems.two}; echo 'en''ded'\n".encode())
            deadline = time.monotonic() + moment
            ended = False
            try:
                guest.expect(b"ended", timeout=max(0.001, deadline - time.monotonic()))
                ended = True
                time.sleep(max(0, deadline - time.monotonic()))
            except Failed:
                pass
            guest.cut()
            guest = Guest(name, f"{WORK}/{name}.qcow2")
            seconds, said = guest.login()
            current = guest.run("readlink /run/current-system").strip()
            which = "two" if current == systems.two else "one"
            check(current in (systems.one, systems.two), f"the current system is {current}")
            check((version(guest) == systems.version_one) == (which == "one"), f"the kernel is not that of {which}")
            check(not ended or which == "two", "a deployment that has ended is lost")
            count[which] += 1
            said = guest.run("ls /usr/local/etc/two", status=None)
            check(("No such" in said) == (which == "one"), f"the files are not those of {which}: {said}")
            check("fruixnew" not in guest.run("find /etc /boot /usr/local /root -name '*.fruix*'"), "something is left")
            other = systems.one if which == "two" else systems.two
            guest.run(f"fruix system switch-generation {other}")
            check(guest.run("readlink /run/current-system").strip() == other, "a later deployment does not count")
            print(f"cuts: turn {turn}: after {moment:.2f} s{' (it had ended)' if ended else ''}: {which}, ready after {seconds:.0f} s", flush=True)
        except Failed as error:
            shutil.copy(f"{WORK}/{name}.qcow2", f"{WORK}/failed-{seed}-{turn}.qcow2")
            raise Failed(f"seed {seed}, turn {turn}, after {moment:.2f} s: {error}") from None
        finally:
            guest.cut()
    print(f"cuts: {turns} turns, all ready; {count['one']} with the former system, {count['two']} with the new one")


def reconfigure():
    systems = Systems()
    guest = resumed("reconfigure")
    try:
        said = guest.run("grep -v 'program\\|client' /t/three.toml | sed 's,^build-users,program = \"/usr/local/sbin/fruixd\"\\n&,' >/t/no.toml", status=None)
        said = guest.run("fruix system reconfigure -q /t/no.toml", status=1, timeout=3600)
        check("could not leave" in said, f"a system without a client is called: {said}")
        guest.run("ln -s /usr/local/sbin/fruixd /usr/local/bin/fruix /t/")
        guest.console.sendall(b"fruix system reconfigure -q --reboot /t/three.toml\n")
        seconds, said = guest.login(timeout=1800)
        print(f"reconfigure: ready with its next system after {seconds:.0f} s")
        is_running(guest, systems.three, "")
        check(lasting(guest) == systems.three, "the next system does not last")
        check(guest.run("hostname").strip() == "three", "the next system has another name")
    finally:
        guest.cut()


PARTS = {"prepare": prepare, "generations": generations, "fallback": fallback, "cuts": cuts, "reconfigure": reconfigure}


def main():
    parts = sys.argv[2:] or list(PARTS)
    try:
        if parts[0] != "prepare" and not os.path.exists(f"{WORK}/booted"):
            prepare()
        for part in parts:
            begun = time.monotonic()
            PARTS[part]()
            print(f"{part}: {time.monotonic() - begun:.0f} s, load {os.getloadavg()[0]:.1f}", flush=True)
    except Failed as error:
        print(f"FAILED: {error}", file=sys.stderr)
        sys.exit(1)


main()
