//! `fruix system boot`: a machine that boots the image, with its serial console on the terminal.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use fruix_freebsd::system::closure::READY_LINE;

use super::Failure;

/// The flags of `fruix system boot`.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Flags of boot")]
pub(super) struct BootArguments {
    /// Boot FILE, a copy of the image for instance, and make nothing
    #[arg(long, value_name = "FILE")]
    pub(super) image: Option<PathBuf>,
    /// Give the machine so many MiB
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    memory: u32,
    /// Give the machine so many processors
    #[arg(long, value_name = "N", default_value_t = 1)]
    cpus: u32,
    /// Give up after so long
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    boot_timeout: u64,
    /// The machine's firmware: `bios', or the file of an UEFI
    #[arg(long, value_name = "FIRMWARE")]
    firmware: Option<String>,
    /// How qemu runs the machine: `kvm' or `tcg'. Without it, kvm where that works
    #[arg(long, value_name = "ACCEL", value_parser = ["kvm", "tcg"])]
    accel: Option<String>,
    /// Leave the machine running when it is ready, with the terminal as its console, until it is shut down
    #[arg(long)]
    keep: bool,
}

/// Where systems keep the UEFI for qemu: the code, and the variables where they are a file of their own.
const UEFI: [(&str, Option<&str>); 6] = [
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", Some("/usr/share/OVMF/OVMF_VARS_4M.fd")),
    ("/usr/share/OVMF/OVMF_CODE.fd", Some("/usr/share/OVMF/OVMF_VARS.fd")),
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", Some("/usr/share/edk2/ovmf/OVMF_VARS.fd")),
    ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", Some("/usr/share/edk2/x64/OVMF_VARS.4m.fd")),
    ("/usr/local/share/edk2-qemu/QEMU_UEFI_CODE-x86_64.fd", Some("/usr/local/share/edk2-qemu/QEMU_UEFI_VARS-x86_64.fd")),
    ("/usr/share/ovmf/OVMF.fd", None),
];
/// And the one for bhyve.
const BHYVE_UEFI: &str = "/usr/local/share/uefi-firmware/BHYVE_UEFI.fd";
/// How long a machine may take to shut down.
const SHUTDOWN: Duration = Duration::from_secs(120);

/// The socket of qemu's monitor.
const MONITOR: &str = "monitor";

/// A machine that runs. Dropped, it is gone.
struct Machine {
    child: Child,
    /// What must be done to a bhyve besides ending it.
    destroy: Option<String>,
    scratch: Scratch,
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(name) = &self.destroy {
            let _ =
                Command::new("bhyvectl").args(["--destroy", &format!("--vm={name}")]).stdout(Stdio::null()).stderr(Stdio::null()).status();
        }
    }
}

/// A directory that goes with what is in it.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> io::Result<Scratch> {
        for number in 0_u32..1000 {
            let path = std::env::temp_dir().join(format!("fruix-boot-{}-{number}", std::process::id()));
            match std::fs::create_dir(&path) {
                Ok(()) => return Ok(Scratch(path)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

/// What boots an image: bhyve where there is one, else qemu.
fn start(image: &Path, format: &str, arguments: &BootArguments, kvm: bool) -> Result<Machine, Failure> {
    let scratch = Scratch::new()?;
    let (mut command, destroy) = if installed("bhyve") && Path::new("/dev/vmm").exists() && arguments.firmware.as_deref() != Some("bios") {
        bhyve(image, format, arguments, &scratch)?
    } else {
        (qemu(image, format, arguments, &scratch, kvm)?, None)
    };
    let child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .map_err(|error| format!("starting `{}': {error}", command.get_program().to_string_lossy()))?;
    Ok(Machine { child, destroy, scratch })
}

fn qemu(image: &Path, format: &str, arguments: &BootArguments, scratch: &Scratch, kvm: bool) -> Result<Command, Failure> {
    const PROGRAM: &str = "qemu-system-x86_64";
    if !installed(PROGRAM) {
        return Err(format!("neither bhyve nor {PROGRAM} is here; install one (qemu-system-x86 and ovmf on Debian)").into());
    }
    let mut command = Command::new(PROGRAM);
    command.args(["-machine", "q35", "-accel", if kvm { "kvm" } else { "tcg" }]);
    // FreeBSD's pages of five levels only cost time, and under emulation much.
    command.args(["-cpu", if kvm { "host" } else { "max,la57=off" }]);
    command.args(["-m", &arguments.memory.to_string(), "-smp", &arguments.cpus.to_string()]);
    command.args(["-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio", "-device", "virtio-rng-pci"]);
    command.args(["-nic", "user,model=virtio-net-pci"]);
    let drive = |options: &str, file: &Path| format!("{options},file={}", file.display().to_string().replace(',', ",,"));
    match arguments.firmware.as_deref() {
        Some("bios") => {}
        Some(file) => {
            command.args(["-drive", &drive("if=pflash,format=raw,readonly=on", Path::new(file))]);
        }
        None => {
            let (code, variables) = UEFI
                .iter()
                .find(|(code, _)| Path::new(code).is_file())
                .ok_or("no UEFI for qemu was found; install ovmf, or name one with --firmware=FILE")?;
            command.args(["-drive", &drive("if=pflash,format=raw,readonly=on", Path::new(code))]);
            if let Some(variables) = variables {
                let copy = scratch.0.join("variables");
                std::fs::copy(variables, &copy)?;
                command.args(["-drive", &drive("if=pflash,format=raw", &copy)]);
            }
        }
    }
    // What the machine writes goes when it ends: the image is the store's.
    command.args(["-drive", &drive(&format!("if=virtio,format={format},snapshot=on"), image)]);
    command.args(["-qmp", &format!("unix:{},server=on,wait=off", scratch.0.join(MONITOR).display())]);
    command.env("TMPDIR", &scratch.0);
    Ok(command)
}

fn bhyve(image: &Path, format: &str, arguments: &BootArguments, scratch: &Scratch) -> Result<(Command, Option<String>), Failure> {
    if format != "raw" {
        return Err("bhyve boots raw images only; write format = \"raw\" below [image]".into());
    }
    let firmware = arguments.firmware.as_deref().unwrap_or(BHYVE_UEFI);
    let disk = scratch.0.join("disk");
    super::materialise::copy_sparse(image, &disk)?;
    let name = format!("fruix-{}", std::process::id());
    let mut command = Command::new("bhyve");
    command.args(["-A", "-H", "-P", "-c", &arguments.cpus.to_string(), "-m", &format!("{}M", arguments.memory)]);
    command.args(["-s", "0,hostbridge", "-s", &format!("3,virtio-blk,{}", disk.display()), "-s", "31,lpc", "-l", "com1,stdio"]);
    command.args(["-l", &format!("bootrom,{firmware}"), &name]);
    Ok((command, Some(name)))
}

/// Boots `image`, shows its console, waits until it says that it is ready and asks for a login, and shuts it down.
pub(super) fn boot(image: &Path, format: &str, marker: &str, arguments: &BootArguments) -> Result<(), Failure> {
    let started = Instant::now();
    let kvm_is_there = || std::fs::File::options().read(true).write(true).open("/dev/kvm").is_ok();
    let accels: &[bool] = match arguments.accel.as_deref() {
        Some(accel) => &[accel == "kvm"],
        // Some machines have a /dev/kvm that cannot run one.
        None if kvm_is_there() => &[true, false],
        None => &[false],
    };
    let ready_line = format!("{READY_LINE}{marker}");
    let mut last: Failure = "there is no machine".into();
    for kvm in accels {
        let mut machine = start(image, format, arguments, *kvm)?;
        let (Some(output), Some(console)) = (machine.child.stdout.take(), machine.child.stdin.take()) else {
            return Err("the machine has no console".into());
        };
        let receiver = follow(output);
        let limit = Duration::from_secs(arguments.boot_timeout);
        match watch(&receiver, &mut machine, &[&ready_line, "login:"], limit) {
            Ok(ready) => return finish(machine, console, &receiver, started, ready, arguments),
            Err((said, reason)) => {
                last = format!("`{ready_line}' and a login prompt did not come: {reason}").into();
                if said {
                    break;
                }
            }
        }
    }
    Err(last)
}

/// What the machine says, in pieces.
fn follow(mut output: std::process::ChildStdout) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel::<Vec<u8>>();
    std::thread::spawn(move || {
        let mut block = vec![0; 4096];
        while let Ok(count @ 1..) = output.read(&mut block) {
            if sender.send(block.get(..count).unwrap_or_default().to_vec()).is_err() {
                break;
            }
        }
    });
    receiver
}

/// What follows when the machine is ready.
fn finish(
    mut machine: Machine,
    mut console: std::process::ChildStdin,
    receiver: &mpsc::Receiver<Vec<u8>>,
    started: Instant,
    ready: Instant,
    arguments: &BootArguments,
) -> Result<(), Failure> {
    let seconds = ready.duration_since(started).as_secs_f64();
    super::print_all([format!("\nready_seconds={seconds:.1}")].iter())?;
    if arguments.keep {
        // The terminal is the machine's now.
        std::thread::spawn(move || {
            let mut block = [0; 256];
            while let Ok(count @ 1..) = io::stdin().read(&mut block) {
                if console.write_all(block.get(..count).unwrap_or_default()).and_then(|()| console.flush()).is_err() {
                    break;
                }
            }
        });
        while let Ok(block) = receiver.recv() {
            show(&block);
        }
        machine.child.wait()?;
        return Ok(());
    }
    power_off(&machine);
    let _ = watch(receiver, &mut machine, &[], SHUTDOWN);
    super::print_all([format!("total_seconds={:.1}", started.elapsed().as_secs_f64())].iter())
}

fn show(block: &[u8]) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(block).and_then(|()| out.flush());
}

/// Shows the console until all of `wanted` have come in their order (and says when), or until it ends: then whether it said anything, and why.
fn watch(receiver: &mpsc::Receiver<Vec<u8>>, machine: &mut Machine, wanted: &[&str], limit: Duration) -> Result<Instant, (bool, Failure)> {
    let mut said = false;
    let deadline = Instant::now() + limit;
    let mut wanted = wanted.iter();
    let mut next = wanted.next();
    let mut seen: Vec<u8> = Vec::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match receiver.recv_timeout(left) {
            Ok(block) => {
                show(&block);
                said = true;
                seen.extend_from_slice(&block);
                while let Some(word) = next {
                    let Some(at) = seen.windows(word.len()).position(|window| window == word.as_bytes()) else { break };
                    seen.drain(..at + word.len());
                    next = wanted.next();
                    if next.is_none() {
                        return Ok(Instant::now());
                    }
                }
                // Only what may be the beginning of a word must be kept.
                let keep = 256;
                if seen.len() > 2 * keep {
                    seen.drain(..seen.len() - keep);
                }
            }
            Err(mpsc::RecvTimeoutError::Timeout) => return Err((said, "the time is over".into())),
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                let status = machine.child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
                return Err((said, format!("the machine ended: {status}").into()));
            }
        }
    }
}

/// Presses the power button: qemu's by its monitor, bhyve's by SIGTERM. The system shuts down in order. One that is off already needs none.
fn power_off(machine: &Machine) {
    match UnixStream::connect(machine.scratch.0.join(MONITOR)) {
        Ok(monitor) => drop(press(monitor)),
        Err(_) => {
            if let Ok(pid) = i32::try_from(machine.child.id()) {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM);
            }
        }
    }
}

fn press(mut monitor: UnixStream) -> io::Result<()> {
    monitor.set_read_timeout(Some(Duration::from_secs(10)))?;
    monitor.write_all(b"{\"execute\":\"qmp_capabilities\"}\n{\"execute\":\"system_powerdown\"}\n")?;
    // What is not waited for is not done.
    let (mut answer, mut block) = (Vec::new(), [0; 4096]);
    while answer.windows(8).filter(|window| window == b"\"return\"").count() < 2 {
        match monitor.read(&mut block)? {
            0 => break,
            count => answer.extend_from_slice(block.get(..count).unwrap_or_default()),
        }
    }
    Ok(())
}
