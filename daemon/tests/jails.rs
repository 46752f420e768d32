//! Builders in jails, on a real FreeBSD kernel, as root. Elsewhere this is empty.
//!
//! Without libtest: the spawner has to be forked while there is one thread. With an argument, only tests whose name has it run.
#![allow(clippy::unwrap_used, clippy::panic)]

#[cfg(not(target_os = "freebsd"))]
fn main() {}

#[cfg(target_os = "freebsd")]
fn main() {
    freebsd::main();
}

#[cfg(target_os = "freebsd")]
mod freebsd {
    use std::collections::{BTreeMap, BTreeSet};
    use std::fs;
    use std::io::{self, Read as _};
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::path::{Path, PathBuf};
    use std::process::Command;
    use std::time::{Duration, Instant};

    use fruix_drv::{StoreDir, StorePath};
    use fruix_freebsd::{
        DeviceRule, Entry, Features, Found, Host, Jail, JailId, Kernel, Lookup, MountId, MountPoint, MountRequest, Parameter, Source,
        builder_devices, provide_ruleset, set_up, tear_down,
    };
    use fruixd::sandbox::plan::{Entry as PlanEntry, Limit, Mount};
    use fruixd::sandbox::spawner::{Isolation, Jailer};
    use fruixd::sandbox::{BuildSpec, Error, ExitStatus, Plan, Program, Running, Sandbox, Site, SpawnerHandle, UserIds, confining};

    const UID: u32 = 35001;
    const GID: u32 = 35000;

    /// A store with a shell, and where builds go.
    struct World {
        dir: PathBuf,
        _holder: Option<tempfile::TempDir>,
        spawner: SpawnerHandle,
        runtime: tokio::runtime::Runtime,
        next: std::cell::Cell<u64>,
    }

    fn builtins(name: &str) -> Option<fn(&[u8]) -> i32> {
        (name == "builtin:seven").then_some(|_| 7)
    }

    fn path(digit: char, name: &str) -> StorePath {
        StorePath::from_base_name(format!("{}-{name}", digit.to_string().repeat(32))).unwrap()
    }

    fn sh(command: &str) -> String {
        let output = Command::new("/bin/sh").args(["-c", command]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    }

    fn fresh_dir() -> tempfile::TempDir {
        let dir = tempfile::Builder::new().prefix("jails").tempdir_in("/var/tmp").unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for name in ["store", "state", "builds"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        dir
    }

    impl World {
        fn new() -> World {
            let holder = fresh_dir();
            let mut world = World::at(holder.path());
            world._holder = Some(holder);
            world
        }

        /// In a directory that [`fresh_dir`] made.
        fn at(dir: &Path) -> World {
            let dir = dir.to_owned();
            let spawner = SpawnerHandle::start_with_jails(builtins, Jailer::prepare(&dir.join("state")).unwrap()).unwrap();
            assert_eq!(spawner.isolation(), Isolation::Jails);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let world = World { dir, _holder: None, spawner, runtime, next: std::cell::Cell::new(0) };
            world.add('1', "shell", |item| {
                fs::create_dir_all(item.join("bin")).unwrap();
                fs::copy("/bin/sh", item.join("bin/sh")).unwrap();
            });
            world
        }

        fn store(&self) -> PathBuf {
            self.dir.join("store")
        }

        fn add(&self, digit: char, name: &str, make: impl FnOnce(&Path)) -> StorePath {
            let path = path(digit, name);
            make(&self.store().join(path.base_name()));
            path
        }

        fn spec(&self, script: &str) -> BuildSpec {
            let number = self.next.get();
            self.next.set(number + 1);
            let root = self.store().join(format!("{number}.drv.chroot/top"));
            let build_dir = self.dir.join(format!("builds/{number}"));
            fs::create_dir_all(&root).unwrap();
            fs::create_dir_all(&build_dir).unwrap();
            std::os::unix::fs::chown(&build_dir, Some(UID), Some(GID)).unwrap();
            let store_dir = StoreDir::new(self.store().to_str().unwrap());
            let shell = format!("{}/bin/sh", store_dir.display(&path('1', "shell")));
            let out = path('0', "out");
            let env = [
                ("PATH", "/bin:/usr/bin:/sbin:/usr/sbin:/usr/local/bin".to_owned()),
                ("out", store_dir.display(&out).to_string()),
                ("store", store_dir.as_str().to_owned()),
            ];
            BuildSpec {
                drv_name: "test.drv".to_owned(),
                traced: false,
                root: Some(root),
                build_dir,
                build_dir_inside: "/tmp/guix-build-test.drv-0".into(),
                inputs: BTreeSet::from([path('1', "shell")]),
                outputs: vec![out],
                extra_dirs: ["/bin", "/lib", "/libexec", "/sbin", "/usr"].map(|dir| (dir.into(), dir.into())).to_vec(),
                builder_root: Vec::new(),
                host_files: Vec::new(),
                program: Program::Exec { path: shell.into(), args: ["sh", "-c", script].map(Into::into).to_vec() },
                env: env.map(|(name, value)| (name.into(), value.into())).into(),
                fixed_output: false,
                user: Some(UserIds { uid: UID, gid: GID, groups: vec![GID] }),
                platform: "x86_64-freebsd".to_owned(),
                system: "x86_64-freebsd".to_owned(),
                impersonate_linux_26: false,
                isolate_host_loopback: false,
                store_dir,
            }
        }

        fn sandbox(&self, limits: &[Limit]) -> std::sync::Arc<dyn Sandbox> {
            confining(self.spawner.clone(), Site { limits: limits.to_vec() })
        }

        fn start(&self, plan: &Plan) -> (Result<Running, Error>, std::fs::File) {
            let (reader, writer) = nix::unistd::pipe().unwrap();
            let running = self.runtime.block_on(self.sandbox(&[]).start(plan, writer));
            (running, reader.into())
        }

        fn run_plan(&self, plan: &Plan) -> (Result<ExitStatus, Error>, String) {
            let (running, mut reader) = self.start(plan);
            let mut text = Vec::new();
            let status = match running {
                Ok(mut running) => {
                    reader.read_to_end(&mut text).unwrap();
                    self.runtime.block_on(running.wait())
                }
                Err(error) => Err(error),
            };
            (status, String::from_utf8_lossy(&text).into_owned())
        }

        fn run(&self, spec: &BuildSpec) -> (ExitStatus, String) {
            let (status, text) = self.run_plan(&self.sandbox(&[]).plan(spec).unwrap());
            (status.unwrap_or_else(|error| panic!("{error}")), text)
        }

        fn script(&self, script: &str) -> String {
            let (status, text) = self.run(&self.spec(script));
            assert_eq!(status, ExitStatus::Code(0), "{text}");
            text
        }

        /// Nothing of ours may be there.
        fn assert_clean(&self) {
            assert_clean(&self.dir);
        }
    }

    fn jails() -> Vec<String> {
        Host.jails().unwrap().into_iter().map(|(_, name)| name).filter(|name| name.starts_with("fruixd-")).collect()
    }

    fn assert_clean(dir: &Path) {
        let mounts = Host.mounts_below(dir).unwrap();
        assert!(mounts.is_empty(), "{mounts:?}");
        assert!(jails().is_empty(), "{:?}", jails());
        assert_eq!(sh(&format!("ps -axo pid=,uid=,command= | grep -w {UID} | grep -v grep; rctl | grep fruixd-")), "");
    }

    fn lines<'a>(text: &'a str, start: &'a str) -> Vec<&'a str> {
        text.lines().filter_map(|line| line.strip_prefix(start)).collect()
    }

    /// All that a builder sees and is, line by line what its plan says.
    fn peek(world: &World) {
        peek_as_planned(world, false);
    }

    /// As `peek`, from a builder whose output is fixed: it has the host's network and the files that go with it, and nothing else is different.
    fn peek_of_a_fixed_output(world: &World) {
        peek_as_planned(world, true);
    }

    fn peek_as_planned(world: &World, fixed_output: bool) {
        let file = world.add('6', "file", |item| fs::write(item, "content").unwrap());
        let link = world.add('7', "link", |item| {
            let _ = fs::remove_file(item);
            symlink("target", item).unwrap();
        });
        let spec = BuildSpec { fixed_output, ..world.spec("") };
        let spec = BuildSpec { inputs: [file, link].into_iter().chain(spec.inputs.clone()).collect(), ..spec };
        let plan = world.sandbox(&[]).plan(&spec).unwrap();
        let features = Host.features().unwrap();
        let canary = "/fruix-canary";
        sh(&format!("posixshmcontrol create {canary}"));
        let inside_of_mounts: String =
            plan.mounts.iter().map(|mount| format!("-path '{}/*' -prune -o ", mount.target().display())).collect();
        let script = format!(
            r#"exec 2>&1
            say() {{ n=$1; shift; "$@" >list; sed "s|^|$n |" list; rm list; }}
            say env sh -c 'env | grep -v -e ^PWD= -e ^OLDPWD= -e ^_= | sort'
            say id id -u; say id id -ru; say id id -g; say id id -rg; say id sh -c "id | sed 's/ groups={GID}(nixbld)$//'"
            say cwd pwd; say umask umask; say host hostname
            for n in jailed enforce_statfs children.max vnet set_hostname_allowed socket_unixiproute_only allow_raw_sockets chflags_allowed mount_allowed mlock_allowed
            do say sysctl sysctl security.jail.$n; done
            say sysctl sysctl kern.securelevel
            say user getent passwd 35001; say user getent passwd nobody; say user getent passwd root; say group getent group
            say port sh -c 'echo $(getent services https)'
            say tree sh -c "find / {inside_of_mounts} -print | xargs stat -f '%N %HT %Mp%Lp %u' | sort"
            say sum sh -c "find /etc -path '/etc/*/*' -prune -o -type f ! -name pwd.db -print | xargs sha256 | sort"
            say dev ls /dev
            say mount sh -c 'mount | grep -v " on / "'
            say process sh -c 'ps -axo command= | grep -v -e ^ps -e ^sh -e ^grep -e ^sed'
            n=0; while [ $n -lt 64 ]; do [ ! -e /dev/fd/$n ] || echo descriptor $n; n=$((n + 1)); done
            say address sh -c 'ifconfig -a inet | grep inet'
            say ipc sh -c 'ipcs | grep "^[mqs]"'; say ipc sh -c 'posixshmcontrol ls | grep canary'
            say jail sh -c 'jls -n | grep -v "jid=0"'
            say limit sh -c 'ulimit -a'
            try() {{ if "$@" >list 2>&1; then echo BAD "$@"; fi; rm list; }}
            for n in /etc/*; do [ -d $n ] || try sh -c "echo x >>$n"; done
            try posixshmcontrol stat {canary}
            try ifconfig lo0 inet 10.9.9.9/32 alias; try ping -c 1 -t 1 127.0.0.1; try hostname x; try sysctl net.inet.ip.forwarding=1
            true"#
        );
        let program = match plan.program.clone() {
            Program::Exec { path, args } => Program::Exec {
                path,
                args: args.into_iter().map(|arg| if arg.is_empty() { script.as_str().into() } else { arg }).collect(),
            },
            other => other,
        };
        let (status, text) = world.run_plan(&Plan { program, ..plan.clone() });
        sh(&format!("posixshmcontrol rm {canary}"));
        assert_eq!(status.unwrap(), ExitStatus::Code(0), "{text}");

        let mut expected = Vec::new();
        let mut say = |name: &str, lines: &[String]| expected.extend(lines.iter().map(|line| format!("{name} {line}")));
        let mut env: Vec<String> = plan.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
        env.sort();
        say("env", &env);
        say("id", &[UID, UID, GID, GID].map(|id| id.to_string()));
        say("id", &[format!("uid={UID}(nixbld) gid={GID}(nixbld)")]);
        say("cwd", &[plan.cwd.display().to_string()]);
        say("umask", &[format!("{:04o}", plan.umask)]);
        say("host", std::slice::from_ref(&plan.host_name));
        let own_network = features.vnet && !fixed_output;
        let rights = [
            ("jailed", 1),
            ("enforce_statfs", 2),
            ("children.max", 0),
            ("vnet", i32::from(own_network)),
            ("set_hostname_allowed", 0),
            ("socket_unixiproute_only", 1),
            ("allow_raw_sockets", 0),
            ("chflags_allowed", 0),
            ("mount_allowed", 0),
            ("mlock_allowed", 0),
        ];
        say("sysctl", &rights.map(|(name, value)| format!("security.jail.{name}: {value}")));
        say("sysctl", &["kern.securelevel: 3".to_owned()]);
        say("user", &["nixbld:*:35001:35000:Nix build user:/:/noshell", "nobody:*:65534:65534:Nobody:/:/noshell"].map(str::to_owned));
        let contents = |name: &str| {
            plan.entries.iter().find_map(|entry| match entry {
                PlanEntry::File { path, contents } if path == Path::new(name) => Some(contents.clone()),
                _ => None,
            })
        };
        say("group", &contents("/etc/group").unwrap().lines().map(|line| line.trim_end_matches(':').to_owned()).collect::<Vec<_>>());
        say("port", &[if fixed_output { sh("echo $(getent services https)").trim().to_owned() } else { "https 443/tcp".to_owned() }]);
        let (tree, sums) = planned_files(&plan);
        say("tree", &tree);
        say("sum", &sums);
        say("dev", &["fd", "full", "null", "random", "stderr", "stdin", "stdout", "urandom", "zero"].map(str::to_owned));
        say("descriptor", &["0", "1", "2"].map(str::to_owned));
        let host = |command: &str| sh(command).lines().map(str::to_owned).collect::<Vec<_>>();
        if own_network {
            say("address", &["\tinet 127.0.0.1 netmask 0xff000000".to_owned()]);
        } else if fixed_output {
            say("address", &host("ifconfig -a inet | grep inet"));
        }
        say("limit", &host("ulimit -a"));
        let found: Vec<&str> = text.lines().collect();
        for (number, line) in expected.iter().enumerate() {
            assert_eq!(found.get(number), Some(&line.as_str()), "line {}\n{text}\nexpected\n{}", number + 1, expected.join("\n"));
        }
        assert_eq!(found.len(), expected.len(), "{text}");
        world.assert_clean();
    }

    /// Every file that a plan shows, but for what is inside of mounts, as `stat -f '%N %HT %Mp%Lp %u'` tells it, and the checksums of those in `/etc`.
    fn planned_files(plan: &Plan) -> (Vec<String>, Vec<String>) {
        use std::os::unix::fs::MetadataExt as _;

        let (mut tree, mut sums) = (BTreeMap::new(), BTreeMap::new());
        let mut add = |path: &Path, told: String| {
            for above in path.ancestors().skip(1) {
                tree.entry(above.to_owned()).or_insert_with(|| "Directory 0755 0".to_owned());
            }
            tree.insert(path.to_owned(), told);
        };
        for entry in &plan.entries {
            match entry {
                PlanEntry::Dir { path, mode, .. } => add(path, format!("Directory {mode:04o} 0")),
                PlanEntry::File { path, contents } => {
                    add(path, "Regular File 0644 0".to_owned());
                    sums.insert(path.clone(), fruix_drv::Hash::sha256(contents).base16());
                }
                PlanEntry::Link { path, .. } => add(path, "Symbolic Link 0755 0".to_owned()),
                PlanEntry::Users { path, .. } => add(path, "Regular File 0644 0".to_owned()),
            }
        }
        let targets: BTreeSet<&Path> = plan.mounts.iter().map(Mount::target).collect();
        for mount in &plan.mounts {
            let Mount::Bind { source, target, .. } = mount else { continue };
            // What is below another mount, as certificates below /usr, is a part of that.
            let Ok(data) = fs::symlink_metadata(source) else { continue };
            if target.ancestors().skip(1).any(|above| targets.contains(above)) {
                continue;
            }
            let input = source.starts_with(plan.store_dir.as_deref().unwrap());
            let data = if input { data } else { fs::metadata(source).unwrap() };
            let (kind, mode) = match data.file_type() {
                kind if kind.is_symlink() => ("Symbolic Link", 0o755),
                kind if kind.is_dir() => ("Directory", data.mode() & 0o7777),
                _ => ("Regular File", data.mode() & 0o7777),
            };
            add(target, format!("{kind} {mode:04o} {}", data.uid()));
            if kind == "Regular File" && target.starts_with("/etc") {
                sums.insert(target.clone(), sh(&format!("sha256 -q {}", source.display())).trim().to_owned());
            }
        }
        add(Path::new("/"), "Directory 0555 0".to_owned());
        add(Path::new("/dev"), format!("Directory {:04o} 0", fs::metadata("/dev").unwrap().mode() & 0o7777));
        let sorted = |mut lines: Vec<String>| {
            lines.sort();
            lines
        };
        (
            sorted(tree.into_iter().map(|(path, told)| format!("{} {told}", path.display())).collect()),
            sorted(sums.into_iter().map(|(path, sum)| format!("SHA256 ({}) = {sum}", path.display())).collect()),
        )
    }

    /// Mounts, jail and limits of a builder that runs, as the host sees them, line by line what its plan says.
    fn as_planned(world: &World, spec: &BuildSpec, network: &str) {
        let limit = |resource: &str, action: &str, amount| Limit { resource: resource.to_owned(), action: action.to_owned(), amount };
        let sandbox = world.sandbox(&[limit("maxproc", "deny", 50), limit("wallclock", "sigkill", 3600)]);
        let plan = sandbox.plan(spec).unwrap();
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let running = world.runtime.block_on(sandbox.start(&plan, writer)).unwrap();
        let mut start = [0; 5];
        std::fs::File::from(reader).read_exact(&mut start).unwrap();
        let root = spec.root.as_deref().unwrap();
        let inside = |target: &Path| root.join(target.strip_prefix("/").unwrap()).display().to_string();
        let mut expected: Vec<String> = plan
            .mounts
            .iter()
            .filter(|mount| !matches!(mount, Mount::Bind { source, .. } if !source.exists() || source.starts_with("/usr/share")))
            .map(|mount| match mount {
                Mount::Bind { source, target, read_only, .. } => {
                    let source = source.canonicalize().unwrap();
                    format!("{} {} nullfs {},nosuid", source.display(), inside(target), if *read_only { "ro" } else { "rw" })
                }
                // These have no set-user-id files, and the table does not show the flag.
                Mount::Devices { target } => format!("devfs {} devfs rw", inside(target)),
                Mount::Descriptors { target } => format!("fdescfs {} fdescfs rw", inside(target)),
                other => panic!("{other:?}"),
            })
            .collect();
        let table = sh("mount -p");
        let ours = table.lines().filter(|line| line.contains(root.to_str().unwrap()));
        // What says nothing of rights, and what the file system below adds.
        let told =
            |options: &str| options.split(',').filter(|word| ["ro", "rw", "nosuid", "noexec"].contains(word)).collect::<Vec<_>>().join(",");
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let mut found: Vec<String> =
            ours.map(words).map(|words| format!("{} {} {} {}", words[0], words[1], words[2], told(&words[3]))).collect();
        expected.sort();
        found.sort();
        assert_eq!(found, expected);
        let name = jails().pop().unwrap();
        let values = sh(&format!(
            "jls -j {name} path securelevel children.max enforce_statfs host.hostname sysvmsg sysvsem sysvshm {}",
            if network == "inherit" { "ip4 ip6" } else { "vnet" }
        ));
        let network = if network == "inherit" { "inherit inherit" } else { network };
        assert_eq!(values.trim(), format!("{} 3 0 2 localhost new new new {network}", root.display()));
        let all = sh(&format!("jls -n -j {name} all"));
        let allowed: Vec<&str> = all
            .split_whitespace()
            .filter(|word| word.starts_with("allow.") && !word.rsplit('.').next().unwrap().starts_with("no"))
            .collect();
        assert_eq!(allowed, ["allow.suser"], "{all}");
        if Host.features().unwrap().limits {
            let mut rules: Vec<String> = sh(&format!("rctl jail:{name}")).lines().map(str::to_owned).collect();
            rules.sort();
            assert_eq!(rules, [format!("jail:{name}:maxproc:deny=50"), format!("jail:{name}:wallclock:sigkill=3600")]);
        }
        running.kill();
        drop(running);
        wait_until(|| jails().is_empty() && Host.mounts_below(&world.dir).unwrap().is_empty());
        world.assert_clean();
    }

    fn the_host_sees_what_the_plan_says(world: &World) {
        let file = world.add('3', "file", |item| fs::write(item, "content").unwrap());
        let spec = world.spec("echo ready; sleep 1000");
        let spec = BuildSpec { inputs: [file].into_iter().chain(spec.inputs.clone()).collect(), ..spec };
        as_planned(world, &spec, if Host.features().unwrap().vnet { "new" } else { "inherit" });
    }

    fn the_host_sees_what_the_plan_of_a_fixed_output_says(world: &World) {
        as_planned(world, &BuildSpec { fixed_output: true, ..world.spec("echo ready; sleep 1000") }, "inherit");
    }

    /// What an attacker tries from inside, and must not get (A1, A3, A12, A19, A20).
    fn attacks(world: &World) {
        let secret = world.dir.join("secret");
        fs::write(&secret, "x").unwrap();
        world.add('2', "undeclared", |item| fs::write(item, "x").unwrap());
        let socket = world.dir.join("state/socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let canary = Command::new("/bin/sleep").arg("1000").uid_of(35002).spawn().unwrap();
        let mut canary = canary;
        let script = format!(
            "exec 2>/dev/null
            try() {{ name=$1; shift; if \"$@\"; then echo \"BAD $name\"; else echo \"refused $name\"; fi; }}
            try su su root -c true
            try write-input sh -c 'echo x >$store/{shell}/bin/x'
            try replace-input mv $store/{shell} $store/gone
            try chmod-input chmod 777 $store/{shell}
            try link-input ln $store/{shell}/bin/sh $store/link
            try write-root sh -c 'echo x >/x'
            try write-etc sh -c 'echo x >>/etc/passwd'
            try host-file cat {secret}
            try undeclared cat $store/{undeclared}
            try host-etc cat /etc/master.passwd
            try socket nc -N -U {socket} </dev/null
            try network ping -c 1 -t 1 192.0.2.1
            try interface ifconfig lo0 inet 10.9.9.9/32 alias
            try raw-socket ping -c 1 -t 1 127.0.0.1
            try signal kill -9 {canary}
            try see ps -p {canary}
            try mount mount -t tmpfs tmpfs /tmp/guix-build-test.drv-0
            try unmount umount $store/{shell}
            try mknod mknod /tmp/null c 1 3
            try module kldload tmpfs
            try sysctl sysctl kern.hostname=x
            try jail jail -c path=/ command=true
            try mdevice mdconfig -a -t swap -s 1m
            try debug procstat -k 1
            cp /bin/sh /tmp/s; chmod 6755 /tmp/s; try setuid /tmp/s -c 'test $(id -u) -ne 35001'
            try give-away chown 0 /tmp/s
            touch /tmp/f
            try system-flag chflags schg /tmp/f
            try system-attribute setextattr system a b /tmp/f
            try dot-dot ls /../boot
            try memory cat /dev/mem
            try klog dmesg
            exit 0",
            shell = path('1', "shell").base_name(),
            undeclared = path('2', "undeclared").base_name(),
            secret = secret.display(),
            socket = socket.display(),
            canary = canary.id(),
        );
        let text = world.script(&script);
        assert!(canary.try_wait().unwrap().is_none());
        canary.kill().unwrap();
        canary.wait().unwrap();
        assert!(!text.contains("BAD"), "{text}");
        assert!(lines(&text, "refused ").len() > 30, "{text}");
        world.assert_clean();
    }

    trait UidOf {
        fn uid_of(&mut self, uid: u32) -> &mut Command;
    }

    impl UidOf for Command {
        fn uid_of(&mut self, uid: u32) -> &mut Command {
            std::os::unix::process::CommandExt::uid(self, uid)
        }
    }

    /// Whatever a builder leaves running, in the sessions and process groups of its own, ends with it.
    fn nothing_outlives_a_builder(world: &World) {
        let text = world.script("for n in 1 2 3; do (trap '' HUP TERM; setsid sleep 1000 || nohup sleep 1000) >/dev/null 2>&1 & done; daemon sleep 1000; echo done");
        assert_eq!(text.lines().last(), Some("done"), "{text}");
        world.assert_clean();
    }

    /// Output is where the daemon looks for it, and belongs to the build user.
    fn outputs_are_found(world: &World) {
        let spec = world.spec("mkdir $out && echo hello >$out/file && echo x >$TMPDIR/y; exit 3");
        let (status, text) = world.run(&spec);
        assert_eq!(status, ExitStatus::Code(3), "{text}");
        let out = spec.root.clone().unwrap().join(world.store().strip_prefix("/").unwrap()).join(path('0', "out").base_name());
        assert_eq!(fs::read_to_string(out.join("file")).unwrap(), "hello\n");
        assert_eq!(std::os::unix::fs::MetadataExt::uid(&fs::metadata(&out).unwrap()), UID);
        world.assert_clean();
    }

    fn links_and_files_are_inputs(world: &World) {
        let file = world.add('3', "file", |item| fs::write(item, "content").unwrap());
        let link = world.add('4', "link", |item| symlink("target", item).unwrap());
        let spec = world.spec("cat $store/3*; readlink $store/4*; touch $store/3* 2>/dev/null && echo BAD; ls -l $store >&2; exit 0");
        let spec = BuildSpec { inputs: [file, link].into_iter().chain(spec.inputs.clone()).collect(), ..spec };
        let (status, text) = world.run(&spec);
        assert_eq!(status, ExitStatus::Code(0));
        assert!(text.starts_with("contenttarget\n") && !text.contains("BAD"), "{text}");
        world.assert_clean();
    }

    /// A store whose way has a symbolic link is not mounted from (A19).
    fn no_link_is_followed_on_the_way(world: &World) {
        let plan = world.sandbox(&[]).plan(&world.spec("true")).unwrap();
        let real = world.store();
        let moved = world.dir.join("moved");
        fs::rename(&real, &moved).unwrap();
        symlink(&moved, &real).unwrap();
        let (status, _) = world.run_plan(&plan);
        fs::remove_file(&real).unwrap();
        fs::rename(&moved, &real).unwrap();
        assert!(matches!(status, Err(Error::Setup { .. })), "{status:?}");
        world.assert_clean();
    }

    /// A set-up that fails says what failed, and leaves nothing.
    fn failures_are_told(world: &World) {
        let spec = world.spec("true");
        let spec = BuildSpec { inputs: BTreeSet::from([path('1', "shell"), path('9', "missing")]), ..spec };
        let (status, _) = world.run_plan(&world.sandbox(&[]).plan(&spec).unwrap());
        let error = status.unwrap_err().to_string();
        assert!(error.contains("-missing"), "{error}");
        world.assert_clean();
        // A program that is not there fails the build in its log.
        let spec = world.spec("true");
        let nothing = format!("{}/bin/none", spec.store_dir.display(&path('1', "shell")));
        let spec = BuildSpec { program: Program::Exec { path: nothing.into(), args: Vec::new() }, ..spec };
        let (status, text) = world.run(&spec);
        assert!(status == ExitStatus::Code(1) && text.contains("in phase exec: "), "{status:?} {text}");
        // Without a build user nothing runs.
        let spec = BuildSpec { user: None, ..world.spec("true") };
        assert!(world.run_plan(&world.sandbox(&[]).plan(&spec).unwrap()).0.unwrap_err().to_string().contains("build users"));
        world.assert_clean();
    }

    fn killing_is_thorough(world: &World) {
        let plan = world.sandbox(&[]).plan(&world.spec("daemon sleep 1000; echo started; sleep 1000")).unwrap();
        let (running, mut reader) = world.start(&plan);
        let mut running = running.unwrap();
        let mut start = [0; 8];
        reader.read_exact(&mut start).unwrap();
        assert_eq!(jails().len(), 1);
        running.kill();
        assert_eq!(world.runtime.block_on(running.wait()).unwrap(), ExitStatus::Signal(libc::SIGKILL));
        world.assert_clean();
        // Dropping is killing, and does not wait.
        let (running, _reader) = world.start(&plan_again(world));
        drop(running);
        wait_until(|| jails().is_empty() && Host.mounts_below(&world.dir).unwrap().is_empty());
    }

    fn plan_again(world: &World) -> Plan {
        world.sandbox(&[]).plan(&world.spec("sleep 1000")).unwrap()
    }

    fn wait_until(mut condition: impl FnMut() -> bool) {
        let since = Instant::now();
        while !condition() {
            assert!(since.elapsed() < Duration::from_secs(60), "it does not come");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The network of a fixed output is the host's; its files are there.
    fn fixed_outputs_have_the_network(world: &World) {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let number = port.local_addr().unwrap().port();
        let script = format!("nc -z -w 2 127.0.0.1 {number} && echo connected; ls /etc; exit 0");
        let fixed = BuildSpec { fixed_output: true, ..world.spec(&script) };
        let (_, text) = world.run(&fixed);
        assert!(text.contains("connected") && text.contains("services"), "{text}");
        let (_, text) = world.run(&world.spec(&script));
        assert!(!text.contains("connected"), "{text}");
        world.assert_clean();
    }

    fn limits_hold(world: &World) {
        if !Host.features().unwrap().limits {
            println!("skipped: kern.racct.enable is 0");
            return;
        }
        let limit = |resource: &str, action: &str, amount| Limit { resource: resource.to_owned(), action: action.to_owned(), amount };
        let sandbox = world.sandbox(&[limit("maxproc", "deny", 20), limit("memoryuse", "sigkill", 64 << 20)]);
        let run = |script: &str| {
            let plan = sandbox.plan(&world.spec(script)).unwrap();
            let (reader, writer) = nix::unistd::pipe().unwrap();
            let mut running = world.runtime.block_on(sandbox.start(&plan, writer)).unwrap();
            let mut text = Vec::new();
            std::fs::File::from(reader).read_to_end(&mut text).unwrap();
            (world.runtime.block_on(running.wait()).unwrap(), String::from_utf8_lossy(&text).into_owned())
        };
        let (_, text) = run("n=0; while [ $n -lt 60 ]; do sleep 30 & n=$((n+1)); done 2>&1; echo survived");
        assert!(text.contains("fork"), "{text}");
        let (_, text) = run("awk 'BEGIN { s = \"x\"; while (length(s) < 300000000) s = s s; print length(s) }' && echo BAD; echo end");
        assert!(!text.contains("BAD"), "{text}");
        world.assert_clean();
    }

    fn builtins_run(world: &World) {
        let spec = BuildSpec {
            program: Program::Builtin { name: "builtin:seven".to_owned(), network: false, input: Vec::new() },
            ..world.spec("")
        };
        assert_eq!(world.run(&spec).0, ExitStatus::Code(7));
        world.assert_clean();
    }

    /// Eight at a time, each with its own root, network and processes.
    fn builds_at_once(world: &World) {
        let sandbox = world.sandbox(&[]);
        let plans: Vec<Plan> =
            (0..8).map(|n| sandbox.plan(&world.spec(&format!("echo {n} >/tmp/mine; sleep 1; cat /tmp/mine"))).unwrap()).collect();
        let texts = world.runtime.block_on(async {
            let mut builds = Vec::new();
            for plan in &plans {
                let (reader, writer) = nix::unistd::pipe().unwrap();
                builds.push((sandbox.start(plan, writer).await.unwrap(), std::fs::File::from(reader)));
            }
            let mut texts = Vec::new();
            for (mut running, mut reader) in builds {
                assert_eq!(running.wait().await.unwrap(), ExitStatus::Code(0));
                let mut text = String::new();
                reader.read_to_string(&mut text).unwrap();
                texts.push(text);
            }
            texts
        });
        assert_eq!(texts, (0..8).map(|n| format!("{n}\n")).collect::<Vec<_>>());
        world.assert_clean();
    }

    /// The kernel, with how often each operation was asked for and how long it took in all. Who asks dies instead of asking a last time.
    #[derive(Default)]
    struct Timed {
        times: BTreeMap<&'static str, (u32, Duration)>,
        asked: u32,
        last: Option<u32>,
    }

    impl Timed {
        fn time<T>(&mut self, name: &'static str, ask: impl FnOnce() -> T) -> T {
            self.asked += 1;
            if Some(self.asked) == self.last {
                std::panic::resume_unwind(Box::new("dead"));
            }
            let since = Instant::now();
            let answer = ask();
            let entry = self.times.entry(name).or_default();
            entry.0 += 1;
            entry.1 += since.elapsed();
            answer
        }
    }

    macro_rules! timed {
        ($($name:ident($($argument:ident: $type:ty),*) -> $result:ty;)*) => {
            impl Kernel for Timed {
                $(fn $name(&mut self, $($argument: $type),*) -> $result {
                    self.time(stringify!($name), || Host.$name($($argument),*))
                })*
            }
        };
    }

    timed! {
        make(root: &Path, entry: &Entry) -> io::Result<()>;
        make_place(root: &Path, path: &Path, dir: bool) -> io::Result<()>;
        find(path: &Path, lookup: Lookup) -> io::Result<Found>;
        mount(request: &MountRequest) -> Result<(), (io::Error, String)>;
        shows(path: &Path, source: &Source) -> io::Result<bool>;
        mounts_below(root: &Path) -> io::Result<Vec<MountPoint>>;
        unmount(id: MountId, force: bool) -> io::Result<()>;
        create_jail(parameters: &[Parameter], owned: bool) -> Result<Jail, (io::Error, String)>;
        jails() -> io::Result<Vec<(JailId, String)>>;
        find_jail(name: &str) -> io::Result<Option<JailId>>;
        remove_jail(jail: JailId) -> io::Result<()>;
        wait_for_children() -> io::Result<()>;
        add_limit(rule: &str) -> io::Result<()>;
        remove_limits(filter: &str) -> io::Result<()>;
        device_rules(ruleset: u16) -> io::Result<Vec<DeviceRule>>;
        add_device_rule(ruleset: u16, number: u16, rule: &DeviceRule) -> io::Result<()>;
        features() -> io::Result<Features>;
    }

    /// Where the time of a jail with many inputs goes.
    fn costs_of_steps(inputs: &[StorePath], world: &World) {
        let spec = world.spec("");
        let inputs = spec.inputs.iter().chain(inputs).cloned().collect();
        let plan = world.sandbox(&[]).plan(&BuildSpec { inputs, extra_dirs: base(), ..spec }).unwrap();
        let mut kernel = Timed::default();
        let ruleset = provide_ruleset(&mut Host, &builder_devices()).unwrap();
        let cell = fruixd::sandbox::jails::cell(&plan, "fruixd-costs", ruleset).unwrap();
        let since = Instant::now();
        let jail = set_up(&mut kernel, &cell, &Host.features().unwrap()).unwrap();
        let up = since.elapsed();
        drop(jail);
        let since = Instant::now();
        tear_down(&mut kernel, &cell.name, &cell.root, true).unwrap();
        let down = since.elapsed();
        let steps: Vec<String> = kernel
            .times
            .iter()
            .map(|(name, (count, time))| format!("{name} {count} times {:.1} ms", time.as_secs_f64() * 1000.0))
            .collect();
        println!("{} mounts: up {} ms, down {} ms: {}", cell.mounts.len(), up.as_millis(), down.as_millis(), steps.join(", "));
    }

    /// What a jail costs, for the documentation.
    fn costs(world: &World) {
        let many: Vec<StorePath> = (0..499).map(|n| world.add('5', &format!("input{n}"), |item| fs::create_dir(item).unwrap())).collect();
        for count in [1, 50, 500] {
            let mut times = Vec::new();
            let rounds = if count < 500 { 5 } else { 3 };
            for _ in 0..rounds {
                let spec = world.spec("exit 0");
                let inputs = spec.inputs.iter().cloned().chain(many.iter().take(count - 1).cloned()).collect();
                let plan = world.sandbox(&[]).plan(&BuildSpec { inputs, extra_dirs: base(), ..spec }).unwrap();
                let since = Instant::now();
                assert_eq!(world.run_plan(&plan).0.unwrap(), ExitStatus::Code(0));
                times.push(since.elapsed().as_millis());
            }
            times.sort_unstable();
            println!(
                "cost of a build with {count} inputs: {} ms ({}..{}), {} mounts",
                times[rounds / 2],
                times[0],
                times[rounds - 1],
                count + 5
            );
        }
        let mut times = Vec::new();
        for _ in 0..5 {
            let spec = BuildSpec { root: None, ..world.spec("exit 0") };
            let plan = Plan::unconfined(&BuildSpec { build_dir_inside: spec.build_dir.clone(), ..spec }).unwrap();
            let since = Instant::now();
            assert_eq!(world.run_plan(&plan).0.unwrap(), ExitStatus::Code(0));
            times.push(since.elapsed().as_millis());
        }
        times.sort_unstable();
        println!("cost of a build without a jail: {} ms ({}..{})", times[2], times[0], times[4]);
        (0..3).for_each(|_| costs_of_steps(&many, world));
        world.assert_clean();
    }

    /// A keeper is killed at any step of making a jail, and all of its daemon with it: the next daemon removes whatever there is by then.
    fn a_death_at_any_step_leaves_nothing(world: &World) {
        let state = world.dir.join("state-of-the-dead");
        let instance = state.join("jails/1x1");
        let ruleset = provide_ruleset(&mut Host, &builder_devices()).unwrap();
        // As on FreeBSD 14, where no descriptor takes the jail along.
        let features = Features { release: 1_400_097, ..Host.features().unwrap() };
        let limit = Limit { resource: "maxproc".to_owned(), action: "deny".to_owned(), amount: 50 };
        let (mut most_mounts, mut limited) = (0, false);
        for last in 1.. {
            let spec = BuildSpec { extra_dirs: base(), ..world.spec("") };
            let plan = world.sandbox(std::slice::from_ref(&limit)).plan(&spec).unwrap();
            let (name, root) = (format!("fruixd-dead-{last}"), spec.root.unwrap());
            let cell = fruixd::sandbox::jails::cell(&plan, &name, ruleset).unwrap();
            fs::create_dir_all(&instance).unwrap();
            fs::write(instance.join("0"), format!(r#"{{"jail":"{name}","root":"{}"}}"#, root.display())).unwrap();
            let mut kernel = Timed { last: Some(last), ..Timed::default() };
            let set_up = std::panic::AssertUnwindSafe(|| set_up(&mut kernel, &cell, &features).unwrap());
            let lives = std::panic::catch_unwind(set_up).map(drop).is_ok();
            assert_eq!(jails().len(), usize::from(lives), "{last}");
            most_mounts = most_mounts.max(Host.mounts_below(&root).unwrap().len());
            limited |= sh(&format!("rctl jail:{name}")).contains("maxproc");
            drop(Jailer::prepare(&state).unwrap());
            let mounts = Host.mounts_below(&world.dir).unwrap();
            assert!(mounts.is_empty() && jails().is_empty(), "{last}: {mounts:?} {:?}", jails());
            assert!(!sh("rctl").contains("fruixd-dead"), "{last}");
            assert!(!root.parent().unwrap().exists() && !instance.exists(), "{last}");
            if lives {
                println!("deaths at {last} steps, with up to {most_mounts} mounts");
                break;
            }
        }
        assert!(most_mounts >= 5 && limited == features.limits, "{most_mounts} {limited}");
        world.assert_clean();
    }

    fn base() -> Vec<(PathBuf, PathBuf)> {
        ["/lib", "/libexec"].map(|dir| (dir.into(), dir.into())).to_vec()
    }

    /// A daemon (this program, as a child) that is killed with builds running: its spawner removes everything. When all are killed at once, the next
    /// daemon does, and touches nobody else's jails.
    fn the_killed_are_cleaned_up_after() {
        let other = sh("jail -c name=fruixd-1_1-2x3-4 path=/ persist");
        assert_eq!(other, "");
        for all in [false, true] {
            let dir = fresh_dir();
            let daemon = Command::new(std::env::current_exe().unwrap()).arg("--as-daemon").arg(dir.path()).spawn().unwrap();
            // All four builds, beside the other one's jail: of a build that its daemon has not yet told of, only that daemon knows.
            wait_until(|| jails().len() == 5);
            if all {
                // Stopped first, so that none of them sees another one's end.
                let ours = format!("$(pgrep -f -- '--as-daemon {0}|fruixd-')", dir.path().display());
                sh(&format!("pids={ours}; kill -STOP $pids; kill -KILL $pids"));
            } else {
                sh(&format!("kill -9 {}", daemon.id()));
            }
            let mut daemon = daemon;
            daemon.wait().unwrap();
            if all {
                wait_until(|| sh("pgrep -f fruixd-").is_empty());
            }
            let jailer = Jailer::prepare(&dir.path().join("state")).unwrap();
            drop(jailer);
            wait_until(|| sh(&format!("pgrep -u {UID}")).is_empty());
            assert_eq!(jails(), ["fruixd-1_1-2x3-4"]);
            assert!(Host.mounts_below(dir.path()).unwrap().is_empty());
            let left: Vec<_> = fs::read_dir(dir.path().join("store")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            let chroots = left.iter().filter(|name| name.to_string_lossy().ends_with(".chroot")).count();
            assert_eq!(chroots, 0, "{left:?}");
        }
        sh("jail -r fruixd-1_1-2x3-4");
    }

    fn as_daemon(dir: &Path) -> ! {
        let world = World::at(dir);
        let plans = (0..4).map(|_| world.sandbox(&[]).plan(&world.spec("sleep 1000 & sleep 1000")).unwrap());
        let running: Vec<_> = plans.map(|plan| world.start(&plan)).collect();
        assert!(running.iter().all(|(running, _)| running.is_ok()));
        std::thread::sleep(Duration::from_secs(1000));
        std::process::exit(1);
    }

    type Test = (&'static str, fn(&World));

    pub(super) fn main() {
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        if let [mode, dir] = arguments.as_slice()
            && mode == "--as-daemon"
        {
            as_daemon(Path::new(dir));
        }
        if arguments.iter().any(|argument| argument == "--list") {
            return;
        }
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: jails need root");
            return;
        }
        let wanted = arguments.iter().find(|argument| !argument.starts_with('-')).cloned().unwrap_or_default();
        let tests: &[Test] = &[
            ("peek", peek),
            ("peek_of_a_fixed_output", peek_of_a_fixed_output),
            ("the_host_sees_what_the_plan_says", the_host_sees_what_the_plan_says),
            ("the_host_sees_what_the_plan_of_a_fixed_output_says", the_host_sees_what_the_plan_of_a_fixed_output_says),
            ("attacks", attacks),
            ("nothing_outlives_a_builder", nothing_outlives_a_builder),
            ("outputs_are_found", outputs_are_found),
            ("links_and_files_are_inputs", links_and_files_are_inputs),
            ("no_link_is_followed_on_the_way", no_link_is_followed_on_the_way),
            ("failures_are_told", failures_are_told),
            ("killing_is_thorough", killing_is_thorough),
            ("fixed_outputs_have_the_network", fixed_outputs_have_the_network),
            ("limits_hold", limits_hold),
            ("builtins_run", builtins_run),
            ("builds_at_once", builds_at_once),
            ("a_death_at_any_step_leaves_nothing", a_death_at_any_step_leaves_nothing),
            ("costs", costs),
        ];
        let mut failed = Vec::new();
        let mut try_it = |name: &'static str, test: &mut dyn FnMut()| {
            if name.contains(&wanted) {
                let since = Instant::now();
                let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(test));
                println!("test {name} ... {} ({} ms)", if result.is_ok() { "ok" } else { "FAILED" }, since.elapsed().as_millis());
                if result.is_err() {
                    failed.push(name);
                }
            }
        };
        if tests.iter().any(|(name, _)| name.contains(&wanted)) {
            let world = World::new();
            for (name, test) in tests {
                try_it(name, &mut || test(&world));
            }
            drop(world);
        }
        try_it("the_killed_are_cleaned_up_after", &mut the_killed_are_cleaned_up_after);
        assert!(failed.is_empty(), "failed: {failed:?}");
    }
}
