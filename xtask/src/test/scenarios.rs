//! The machine tests: which machine boots with what, and what must be seen.
//!
//! A boot is expensive, so a scenario checks as much as one boot can show. To add one, add an entry to [`ALL`].

use super::disturb::Disturbance;
use crate::image;
use crate::linux::Changes;
use crate::machine::Kind;
use crate::script::Step;

/// One boot of one machine.
#[derive(Debug)]
pub struct Scenario {
    /// Its name in test names.
    pub name: &'static str,
    /// The machines it runs on. What runs on `qemu-svm` runs on `qemu-kvm`, too, where that is asked for.
    pub machines: &'static [Kind],
    /// The number of CPUs.
    pub smp: u32,
    /// How many of them are threads of one core.
    pub threads: u32,
    /// QEMU's time is counted in instructions of that many nanoseconds, a power of two, so that it does not matter how fast
    /// this computer is, or what else it does.
    pub instruction_ns: Option<u32>,
    /// Whether the CPU announces the registers against speculative execution.
    pub predictions: bool,
    /// Memory in MiB; less where the machine cannot have so much.
    pub memory: u32,
    /// The kernel command line.
    pub command_line: &'static str,
    /// The guests in the image, besides that of the first domain; all that are built if `None`. Linux must be named: `linux`,
    /// `linux-debian`.
    pub guests: Option<&'static [&'static str]>,
    /// More of the command line of each Linux in the image, such as `plinth.run=uname%20-a`.
    pub linux_append: &'static str,
    /// The number of vCPUs of each Linux, where it is not what the machine file says.
    pub linux_vcpus: Option<u32>,
    /// Whether Linux starts with the control guest, where its machine file says so.
    pub autostart: bool,
    /// What is typed at the control guest.
    pub script: &'static [Step<'static>],
    /// What comes from outside meanwhile; in QEMU only.
    pub disturbance: Option<Disturbance>,
    /// The machine is killed after so many seconds.
    pub timeout: u64,
    /// The status in the machine's last line.
    pub status: u32,
    /// Who must announce and report suites of tests: guests, or `kernel`.
    pub suites: &'static [&'static str],
    /// What must be seen on the serial console.
    pub expectations: &'static [Expectation],
}

/// Something that must be seen; a test of its own.
#[derive(Debug)]
pub struct Expectation {
    /// The test's name.
    pub name: &'static str,
    /// What it looks for.
    pub pattern: Pattern,
}

/// What is looked for in the lines of the serial console.
#[derive(Debug)]
pub enum Pattern {
    /// A line contains this.
    Has(&'static str),
    /// A line matches this regular expression.
    Matches(&'static str),
    /// One line after the other contains these, in this order.
    Ordered(&'static [&'static str]),
    /// No line contains this, and the machine got to its end.
    Never(&'static str),
    /// A line contains the first text, and each that does contains one of the others, too. The machine got to its end.
    Only(&'static str, &'static [&'static str]),
}

impl Scenario {
    /// Whether it runs on a kind of machine.
    pub fn runs_on(&self, kind: Kind) -> bool {
        let like = if kind == Kind::QemuKvm {
            Kind::QemuSvm
        } else {
            kind
        };
        self.machines.contains(&like)
    }

    /// What the machine files of Linux have otherwise.
    pub fn linux(&self) -> Changes<'static> {
        Changes {
            append: self.linux_append,
            vcpus: self.linux_vcpus,
            // A script that starts it itself finds it as it was made.
            autostart: (!self.autostart).then_some(false),
        }
    }

    /// Whose reports of tests have no prefix: those of the guest that has the machine to itself, or else the kernel's.
    pub fn speaker(&self) -> &'static str {
        image::option(self.command_line, "root").unwrap_or("kernel")
    }

    /// Whether a test of this scenario, called `job` on its machine, can have a name that contains `filter`.
    pub fn may_match(&self, job: &str, filter: &str) -> bool {
        let prefix = format!("{job}/");
        if prefix.contains(filter) || filter.starts_with(&prefix) {
            return true;
        }
        let known = self
            .expectations
            .iter()
            .map(|expectation| expectation.name)
            .chain(["end"]);
        if known
            .map(|name| format!("{prefix}{name}"))
            .any(|name| name.contains(filter))
        {
            return true;
        }
        // The names of the tests inside are known only afterwards.
        let inner = filter.rsplit('/').next().unwrap_or_default();
        let outer = filter.strip_suffix(inner).unwrap_or_default();
        !self.suites.is_empty() && prefix.ends_with(outer)
    }
}

/// What most scenarios have in common.
pub const DEFAULT: Scenario = Scenario {
    name: "",
    machines: &[Kind::QemuSvm, Kind::BochsVmx, Kind::BochsSvm],
    smp: 2,
    threads: 1,
    instruction_ns: None,
    predictions: false,
    memory: 1024,
    command_line: "",
    guests: None,
    linux_append: "",
    linux_vcpus: None,
    autostart: false,
    script: &[],
    disturbance: None,
    timeout: 400,
    status: 0,
    suites: &[],
    expectations: &[],
};

/// What every machine that fails on purpose must and must not say.
const fn failing(
    name: &'static str,
    command_line: &'static str,
    machines: &'static [Kind],
    expectations: &'static [Expectation],
) -> Scenario {
    Scenario {
        name,
        command_line,
        machines,
        expectations,
        guests: Some(&[]),
        status: 101,
        ..DEFAULT
    }
}

/// A kernel that was attacked and has nothing to complain of.
const UNHARMED: &[Expectation] = &[
    never("no-panic", "panic at"),
    never("no-kernel-error", " ERROR "),
];

/// A round through the control guest's commands.
const SHELL: &[Step<'static>] = &[
    Step::Type("help"),
    Step::Type("list"),
    Step::Type("create hello"),
    Step::Type("start hello"),
    Step::Expect("hello ended: status 0"),
    Step::Type("list"),
    Step::Type("create spin"),
    Step::Type("start spin"),
    // Held most of the time: it is killed when it has used up its limit of CPU time.
    Step::Type("pause spin"),
    Step::Type("list"),
    Step::Type("set spin weight 512"),
    Step::Type("set spin cap 50"),
    Step::Type("info spin"),
    Step::Type("resume spin"),
    Step::Type("console spin"),
    Step::Expect("spinning"),
    // Ctrl-] leaves the console.
    Step::Keys("\x1d"),
    Step::Type("kill spin"),
    Step::Expect("spin ended: killed"),
    Step::Type("restart spin"),
    Step::Type("kill spin"),
    Step::Expect("spin ended: killed"),
    Step::Type("restart spin"),
    Step::Type("pause spin"),
    Step::Type("frobnicate"),
    Step::Type("start nobody"),
    Step::Type("dmesg"),
    Step::Type("trace"),
    Step::Type("version"),
    Step::Type("crash"),
    Step::Type("list"),
    Step::Type("resume spin"),
    Step::Type("kill spin"),
    Step::Expect("spin ended: killed"),
    Step::Type("destroy spin"),
    Step::Type("shutdown 0"),
];

/// What Linux says of itself when it is asked, and the end that it then makes.
const LINUX_TELLS: &str = "quiet plinth.run=uname%20-sm;nproc;\
    cat%20/sys/devices/system/clocksource/clocksource0/current_clocksource;\
    grep%20-c%20ttyS0%20/proc/interrupts;\
    dd%20if=/dev/zero%20bs=1024%20count=1024%202>/dev/null|md5sum";

/// What the commands of [`LINUX_TELLS`] give, with so many CPUs.
macro_rules! linux_tells {
    ($cpus:literal) => {
        &[
            "[linux] plinth-init: ready",
            "[linux] Linux x86_64",
            concat!("[linux] ", $cpus),
            "[linux] 1",
            // MD5 of a MiB of zeroes.
            "[linux] b6d81b360a5672d80c27430f39153e2c",
            "[linux] plinth-init: status 0",
            "linux ended: powered off",
        ]
    };
}

/// Linux counts its CPUs, and computes on as many at once.
const LINUX_COUNTS: &str = "quiet plinth.run=echo%20$(nproc)%20CPUs,%20$(cat%20/sys/devices/system/cpu/online)%20online;\
    for%20i%20in%20$(seq%20$(nproc));do%20dd%20if=/dev/zero%20bs=1024%20count=1024%202>/dev/null|md5sum>/tmp/$i&%20done;wait;\
    sort%20/tmp/[1-9]|uniq%20-c";

/// What the commands of [`LINUX_COUNTS`] give, with so many CPUs.
macro_rules! linux_counts {
    ($cpus:literal, $online:literal) => {
        &[
            "[linux] plinth-init: ready",
            concat!("[linux] ", $cpus, " CPUs, ", $online, " online"),
            // MD5 of a MiB of zeroes, and how often it came out.
            concat!(" ", $cpus, " b6d81b360a5672d80c27430f39153e2c"),
            "[linux] plinth-init: status 0",
            "linux ended: powered off",
        ]
    };
}

/// Linux tells what its kernel has warned of: what has level 4 or less, whoever it is from (the level is the number modulo 8).
const LINUX_WARNS: &str = "quiet plinth.run=dmesg%20-r|awk%20-F'[<>]'%20'$2%8<5'|sed%20's/^/warned:%20/';echo%20that%20was%20all";

/// What the same kernel warns of, too, in QEMU without Plinth: see docs/testing.md.
const KNOWN_WARNINGS: &[&str] = &[
    // QEMU's EPYC has a family and a model that are concerned, and no microcode against it.
    "Speculative Return Stack Overflow: IBPB-extending microcode not applied!",
    "Speculative Return Stack Overflow: WARNING: See https://",
    // Where the host took the CPU away meanwhile.
    "tsc: Unable to calibrate against PIT",
];

/// Linux as an operator has it, who finds it started: its shell on the console, then its end.
const LINUX_SHELL: &[Step<'static>] = &[
    Step::Type("console linux"),
    Step::Expect("plinth-init: ready"),
    Step::Keys("echo $((6*7)) is the answer\r"),
    Step::Expect("42 is the answer"),
    Step::Keys("reboot -f\r"),
    Step::Expect("linux is gone"),
    Step::Type("console linux"),
    Step::Expect("plinth-init: ready"),
    Step::Keys("poweroff -f\r"),
    Step::Expect("it has ended: powered off"),
    // Ctrl-] leaves the console.
    Step::Keys("\x1d"),
    Step::Expect("linux ended: powered off"),
    Step::Type("list"),
    Step::Type("info linux"),
    Step::Type("shutdown 0"),
];

/// The other ends that Linux can have. What decides on them is set while it runs, so that each costs no boot of the whole machine.
const LINUX_ENDS: &[Step<'static>] = &[
    // A panic, after which it resets its machine: so its machine file's command line wants it.
    Step::Type("create linux"),
    Step::Type("start linux"),
    Step::Type("console linux"),
    Step::Expect("plinth-init: ready"),
    // Else the echo of what is typed may get between the letters of the kernel's last words.
    Step::Keys("sleep 1; echo c >/proc/sysrq-trigger\r"),
    Step::Expect("linux is gone"),
    // A triple fault, which Linux can be told to make where it would reset.
    Step::Type("console linux"),
    Step::Expect("plinth-init: ready"),
    Step::Keys("echo triple >/sys/kernel/reboot/type; reboot -f\r"),
    Step::Expect("it has ended: triple fault"),
    // Ctrl-] leaves the console.
    Step::Keys("\x1d"),
    Step::Expect("linux ended: triple fault"),
    Step::Type("list"),
    // A halt of all CPUs with interrupts off.
    Step::Type("restart linux"),
    Step::Type("console linux"),
    Step::Expect("plinth-init: ready"),
    Step::Keys("halt -f\r"),
    Step::Expect("it has ended: halted"),
    Step::Keys("\x1d"),
    Step::Expect("linux ended: halted"),
    Step::Type("list"),
    // A panic behind which Linux waits for ever, with interrupts on: nothing tells that from work.
    Step::Type("restart linux"),
    Step::Type("console linux"),
    Step::Expect("plinth-init: ready"),
    Step::Keys("echo 0 >/proc/sys/kernel/panic; sleep 1; echo c >/proc/sysrq-trigger\r"),
    Step::Expect("end Kernel panic"),
    Step::Keys("\x1d"),
    Step::Type("sleep 2"),
    Step::Type("list"),
    Step::Type("kill linux"),
    Step::Expect("linux ended: killed"),
    Step::Type("shutdown 0"),
];

/// Four at once: one is killed while the others compute.
const FOUR_LINUXES: &[Step<'static>] = &[
    Step::Type("create linux 4"),
    Step::Type("start linux-*"),
    Step::Type("sleep 8"),
    Step::Type("pause linux-1"),
    Step::Type("kill linux-2"),
    Step::Type("resume linux-1"),
    Step::Type("wait linux-1"),
    Step::Type("wait linux-3"),
    Step::Type("wait linux-4"),
    Step::Type("log linux-1"),
    Step::Type("log linux-3"),
    Step::Type("log linux-4"),
    Step::Type("list"),
    Step::Type("shutdown 0"),
];

/// All scenarios.
pub static ALL: &[Scenario] = &[
    // Debian's kernel for virtual machines, unmodified, on two vCPUs.
    Scenario {
        name: "linux",
        machines: &[Kind::QemuSvm, Kind::BochsVmx],
        guests: Some(&["linux"]),
        linux_append: LINUX_TELLS,
        script: &[Step::Type("run linux"), Step::Type("shutdown 0")],
        timeout: 1500,
        expectations: &[
            ordered("tells-what-it-is", linux_tells!("2")),
            // Where the TSC is invariant Linux likes that best.
            matches("has-a-good-clock", r"\[linux\] (kvm-clock|tsc)$"),
            never("no-panic", "panic"),
        ],
        ..DEFAULT
    },
    // Its kernel for any computer.
    Scenario {
        name: "linux-debian",
        machines: &[Kind::QemuSvm],
        guests: Some(&["linux-debian"]),
        linux_append: LINUX_TELLS,
        script: &[
            Step::Type("create linux-debian as linux"),
            Step::Type("start linux"),
            Step::Type("wait linux"),
            Step::Type("log linux"),
            Step::Type("shutdown 0"),
        ],
        timeout: 600,
        expectations: &[
            ordered(
                "says-so",
                &[
                    "plinth-init: ready",
                    "Linux x86_64",
                    "b6d81b360a5672d80c27430f39153e2c",
                    "plinth-init: status 0",
                ],
            ),
            never("no-panic", "panic"),
        ],
        ..DEFAULT
    },
    Scenario {
        name: "linux-shell",
        machines: &[Kind::QemuSvm],
        guests: Some(&["linux"]),
        linux_append: "quiet",
        autostart: true,
        script: LINUX_SHELL,
        timeout: 600,
        expectations: &[
            ordered(
                "starts-reboots-and-powers-off",
                &[
                    "linux runs",
                    "42 is the answer",
                    "linux ended: reset",
                    "linux ended: powered off",
                ],
            ),
            matches(
                "info-counts-what-came-by-the-serial-port",
                r"console +[1-9]\S* \w*B written",
            ),
            never("no-panic", "panic at"),
            never("no-panic-of-linux", "Kernel panic"),
        ],
        ..DEFAULT
    },
    // It warns of nothing that it would not warn of in the same emulator without Plinth.
    Scenario {
        name: "linux-warnings",
        machines: &[Kind::QemuSvm],
        guests: Some(&["linux"]),
        linux_append: LINUX_WARNS,
        script: &[Step::Type("run linux"), Step::Type("shutdown 0")],
        timeout: 600,
        expectations: &[
            Expectation {
                name: "none-is-new",
                pattern: Pattern::Only("[linux] warned: ", KNOWN_WARNINGS),
            },
            ordered(
                "all-are-told",
                &["[linux] that was all", "linux ended: powered off"],
            ),
        ],
        ..DEFAULT
    },
    // How else Linux can end, and what follows.
    Scenario {
        name: "linux-ends",
        machines: &[Kind::QemuSvm],
        guests: Some(&["linux"]),
        linux_append: "quiet",
        script: LINUX_ENDS,
        timeout: 900,
        expectations: &[
            ordered(
                "a-panic-resets",
                &[
                    "Kernel panic - not syncing: sysrq triggered crash",
                    "linux ended: reset, rip 0x0; it is restarted",
                ],
            ),
            matches(
                "a-triple-fault-is-listed",
                r"^ *\d+ +linux +ended .* keep +triple fault$",
            ),
            matches(
                "a-halt-is-listed",
                r"^ *\d+ +linux +ended .* keep +halted for good$",
            ),
            // No other list has it running.
            matches(
                "a-panic-that-waits-runs-on",
                r"^ *\d+ +linux +running .* keep *$",
            ),
            never("no-panic-of-plinth", "panic at"),
        ],
        ..DEFAULT
    },
    // More vCPUs than CPUs, and fewer.
    Scenario {
        name: "linux-eight",
        machines: &[Kind::QemuSvm],
        guests: Some(&["linux"]),
        linux_append: LINUX_COUNTS,
        linux_vcpus: Some(8),
        script: &[Step::Type("run linux"), Step::Type("shutdown 0")],
        timeout: 900,
        expectations: &[
            ordered("all-are-online-and-compute", linux_counts!("8", "0-7")),
            never("no-panic", "panic"),
        ],
        ..DEFAULT
    },
    Scenario {
        name: "linux-one",
        machines: &[Kind::QemuSvm],
        guests: Some(&["linux"]),
        linux_append: LINUX_COUNTS,
        linux_vcpus: Some(1),
        script: &[Step::Type("run linux"), Step::Type("shutdown 0")],
        timeout: 600,
        expectations: &[
            ordered("it-is-online-and-computes", linux_counts!("1", "0")),
            never("no-panic", "panic"),
        ],
        ..DEFAULT
    },
    Scenario {
        name: "linux-four",
        machines: &[Kind::QemuSvm],
        memory: 2048,
        guests: Some(&["linux"]),
        linux_append: "quiet plinth.run=i=0;while%20[%20$i%20-lt%2060%20];do%20dd%20if=/dev/zero%20bs=1024%20count=1024%202>/dev/null|md5sum%20>>/tmp/sums;i=$((i+1));done;sort%20-u%20/tmp/sums;wc%20-l%20</tmp/sums",
        script: FOUR_LINUXES,
        timeout: 900,
        expectations: &[
            ordered(
                "three-compute-right",
                &[
                    "linux-2 ended: killed",
                    "b6d81b360a5672d80c27430f39153e2c",
                    "60",
                    "b6d81b360a5672d80c27430f39153e2c",
                    "60",
                    "b6d81b360a5672d80c27430f39153e2c",
                    "60",
                ],
            ),
            never("no-panic", "panic"),
        ],
        ..DEFAULT
    },
    // Test guests in batch mode, two at a time, each ending as it should.
    Scenario {
        name: "boot",
        command_line: "guests=hello,spin,privileged,realmode,trespass,crash,ctest",
        suites: &["privileged", "realmode", "trespass"],
        expectations: &[
            has(
                "all-as-expected",
                "all guests have ended, 0 of them otherwise than expected",
            ),
            never("no-panic", "panic at"),
            never("no-unexpected-exit", "unexpected exit"),
            ordered(
                "loader-tells-its-steps",
                &[
                    "boot volume",
                    "kernel.elf, ",
                    "modules.tar, ",
                    "physical memory mapped with pages of up to",
                    "leaving firmware",
                    "Plinth",
                ],
            ),
            ordered(
                "both-cpus-are-listed",
                &["2 CPUs, ", "cpu0 has APIC id 0", "cpu1 has APIC id 1"],
            ),
            matches("tsc-is-calibrated", r"TSC [1-9]\d*\.\d{3} MHz by "),
            matches(
                "capabilities-are-shown",
                r"(VMX|SVM) is used; what this CPU offers:",
            ),
            has("lacks-are-told-in-words", "  -- "),
            has("mitigations-are-told", "speculation: "),
            ordered(
                "two-guests-at-a-time",
                &["hello ended: ", "[privileged] suite "],
            ),
            has("hello-prints", "[hello] Hello from a guest of Plinth."),
            matches("hello-ends-by-itself", r"^hello ended: status 0, rip 0x"),
            has(
                "hello-sees-the-hypervisor",
                "[hello] hypervisor PlinthPlinth",
            ),
            has(
                "spin-reaches-interrupts-off",
                "[spin] spinning with interrupts off",
            ),
            matches(
                "spin-ends-by-its-limit",
                r"^spin ended: time limit used up, rip 0x",
            ),
            matches(
                "crash-is-a-triple-fault",
                r"^crash ended: triple fault, rip 0x",
            ),
            matches(
                "trespass-is-a-nested-fault",
                r"^trespass ended: write to unmapped guest-physical 0x400000, rip 0x",
            ),
            has("c-guest-prints", "[ctest] Hello from a guest in C."),
            matches(
                "c-guest-finds-the-contract-kept",
                r"^ctest ended: status 0, rip 0x",
            ),
        ],
        ..DEFAULT
    },
    // With everything against speculative execution that the CPU can execute, needed or not, and a CPU that announces it.
    Scenario {
        name: "speculation",
        machines: &[Kind::QemuSvm, Kind::BochsVmx],
        smp: 1,
        predictions: true,
        command_line: "guests=privileged mitigations=all",
        guests: Some(&["privileged"]),
        suites: &["privileged"],
        expectations: &[
            never("no-panic", "panic at"),
            matches(
                "mitigations-are-told",
                r"speculation: IBPB between domains, .*RSB filling after exits, VERW before entries",
            ),
            has(
                "all-as-expected",
                "all guests have ended, 0 of them otherwise than expected",
            ),
        ],
        ..DEFAULT
    },
    // Kernels for a PC that know nothing of Plinth: two check what the loader hands them, one works with the old devices.
    Scenario {
        name: "pc",
        command_line: "guests=pvh,multiboot,legacy",
        guests: Some(&["pvh", "multiboot", "legacy"]),
        suites: &["pvh", "multiboot", "legacy"],
        expectations: &[
            never("no-panic", "panic at"),
            has(
                "all-as-expected",
                "all guests have ended, 0 of them otherwise than expected",
            ),
            matches(
                "pvh-ends-by-the-exit-port",
                r"^pvh ended: exit port, status 0",
            ),
            matches("legacy-ends-by-acpi", r"^legacy ended: powered off"),
        ],
        ..DEFAULT
    },
    // The same where the CPU keeps the local APICs, and the kernel does not serve them alone.
    Scenario {
        name: "pc-apic-cpu",
        machines: &[Kind::BochsVmx],
        command_line: "guests=pvh,legacy apic=cpu",
        guests: Some(&["pvh", "legacy"]),
        suites: &["pvh", "legacy"],
        expectations: &[
            never("no-panic", "panic at"),
            has("kept-by-the-cpu", "local APICs of PCs are kept by the CPU"),
            has(
                "all-as-expected",
                "all guests have ended, 0 of them otherwise than expected",
            ),
        ],
        ..DEFAULT
    },
    // One CPU for two guests: the one that never yields must not keep the other from its end.
    Scenario {
        name: "one-cpu",
        smp: 1,
        command_line: "guests=spin,hello mitigations=all",
        guests: Some(&["spin", "hello"]),
        expectations: &[
            ordered(
                "hello-ends-beside-spin",
                &[
                    "[spin] spinning",
                    "hello ended: status 0",
                    "spin ended: time limit",
                ],
            ),
            has("one-cpu-is-listed", "1 CPU, "),
        ],
        ..DEFAULT
    },
    // Of two threads of a core one runs guests, the other stays idle.
    Scenario {
        name: "threads",
        machines: &[Kind::QemuSvm],
        smp: 4,
        threads: 2,
        command_line: "guests=hello smt=off",
        guests: Some(&["hello"]),
        expectations: &[
            never("no-panic", "panic at"),
            has("parked-ones-are-told", "2 CPUs stay idle: "),
            ordered(
                "one-of-each-core-is-listed",
                &["2 CPUs, ", "cpu0 has APIC id 0", "cpu1 has APIC id 2"],
            ),
            matches("guests-run", "^hello ended: status 0"),
        ],
        ..DEFAULT
    },
    // What the user got wrong is said, and costs nothing else.
    Scenario {
        name: "wrong-guest",
        machines: &[Kind::QemuSvm],
        command_line: "guests=hello,nobody nonsense=1",
        guests: Some(&["hello"]),
        status: 1,
        expectations: &[
            matches("missing-guest-is-named", r"^error: .*\bnobody\b"),
            has("unknown-word-is-named", "`nonsense=1` is not known"),
            matches("the-other-guest-runs", r"^hello ended: status 0"),
        ],
        ..DEFAULT
    },
    // What an operator does, and gets wrong.
    Scenario {
        name: "shell",
        guests: Some(&["hello", "spin"]),
        script: SHELL,
        expectations: &[
            never("no-panic", "panic at"),
            ordered(
                "help-lists-commands",
                &["plinth> help", "create", "shutdown", "plinth> list"],
            ),
            ordered(
                "hello-runs-and-ends",
                &[
                    "plinth> create hello",
                    "plinth> start hello",
                    "hello ended: status 0",
                ],
            ),
            matches("the-list-has-what-ended", r"\bhello\s.*\bended\b[^:]*$"),
            matches("the-list-has-what-is-paused", r"\bspin\s.*\bpaused\b"),
            // Not the line that was typed, which has a prompt.
            matches("info-shows-the-weight", r"^[^>]*\b512\b"),
            matches("info-shows-the-cap", r"^[^>]*\b50 ?%"),
            ordered(
                "spin-is-killed-and-restarted",
                &[
                    "plinth> kill spin",
                    "spin ended: killed",
                    "plinth> restart spin",
                    "plinth> kill spin",
                    "spin ended: killed",
                ],
            ),
            matches(
                "an-unknown-command-is-an-error",
                r"^error: .*\bfrobnicate\b",
            ),
            matches("an-unknown-name-is-an-error", r"^error: .*\bnobody\b"),
            ordered(
                "dmesg-shows-the-kernels-log",
                &["plinth> dmesg", " INFO ", "plinth> trace"],
            ),
            ordered(
                "trace-shows-what-the-scheduler-did",
                &["plinth> trace", "run", "plinth> version"],
            ),
            ordered(
                "version-is-shown",
                &["plinth> version", "Plinth", "plinth> crash"],
            ),
            ordered(
                "domains-outlive-the-control-guest",
                &[
                    "plinth> crash",
                    "plinth> list",
                    "spin",
                    "plinth> resume spin",
                    "plinth> kill spin",
                    "spin ended: killed",
                    "plinth> destroy spin",
                    "plinth> shutdown 0",
                ],
            ),
        ],
        ..DEFAULT
    },
    // Every hypercall, every error: the suite is a guest that has the machine to itself.
    Scenario {
        name: "conformance",
        // Bochs's SVM opens no interrupt window, and a guest's triple fault can end it.
        machines: &[Kind::QemuSvm, Kind::BochsVmx],
        command_line: "root=conformance",
        guests: Some(&[]),
        timeout: 900,
        suites: &["conformance"],
        expectations: &[never("no-panic", "panic at")],
        ..DEFAULT
    },
    // What concerns PCs in it, where the CPU keeps the local APICs: but for what Bochs does wrong then.
    Scenario {
        name: "conformance-apic-cpu",
        machines: &[Kind::BochsVmx],
        command_line: "root=conformance tests=pc_ skip=pc_local::interrupts_wait_for_sti_beside_others,pc_ends apic=cpu",
        guests: Some(&[]),
        timeout: 900,
        suites: &["conformance"],
        expectations: &[
            never("no-panic", "panic at"),
            has("kept-by-the-cpu", "local APICs of PCs are kept by the CPU"),
        ],
        ..DEFAULT
    },
    // Attacks by class, beside a neighbour that must not notice.
    Scenario {
        name: "hostile",
        // As for `conformance`.
        machines: &[Kind::QemuSvm, Kind::BochsVmx],
        // Most attackers end, and the serial port is slow.
        command_line: "root=hostile log=warn",
        timeout: 900,
        guests: Some(&[]),
        suites: &["hostile"],
        expectations: UNHARMED,
        ..DEFAULT
    },
    // Random hypercalls and random instructions. In Bochs they take minutes.
    Scenario {
        name: "fuzzers",
        machines: &[Kind::QemuSvm],
        command_line: "root=fuzzer log=warn",
        timeout: 900,
        guests: Some(&[]),
        suites: &["fuzzer"],
        expectations: UNHARMED,
        ..DEFAULT
    },
    // A first domain that does what a control guest does, and is killed at random points of it.
    Scenario {
        name: "lives",
        // In Bochs it takes minutes.
        machines: &[Kind::QemuSvm],
        command_line: "root=fuzzer log=warn restart=always fuzz=lives",
        timeout: 900,
        guests: Some(&[]),
        suites: &["fuzzer"],
        expectations: &[
            never("no-panic", "panic at"),
            matches("was-killed-often", r"200 operations in \d{2,} lives"),
        ],
        ..DEFAULT
    },
    // How the scheduler shares the CPUs, and what domains cost, 500 of them where there is memory for it. Nothing of that is SVM's on
    // Bochs alone.
    Scenario {
        name: "measure",
        machines: &[Kind::QemuSvm, Kind::BochsVmx],
        command_line: "root=measure",
        instruction_ns: Some(8),
        guests: Some(&[]),
        memory: 4096,
        timeout: 900,
        suites: &["measure"],
        expectations: &[never("no-panic", "panic at")],
        ..DEFAULT
    },
    Scenario {
        name: "kernel",
        predictions: true,
        command_line: "test=cpu",
        guests: Some(&["hello"]),
        suites: &["kernel"],
        expectations: &[
            never("no-panic", "panic at"),
            has(
                "tells-of-a-vector-that-nobody-uses",
                "WARN  cpu0 an interrupt came on vector 0x20, which nobody uses",
            ),
            ordered(
                "shows-the-state-of-a-refused-entry",
                &["as it was when it left for good:", "[hello] Hello"],
            ),
        ],
        ..DEFAULT
    },
    failing(
        "panic",
        "test=panic",
        &[Kind::QemuSvm],
        &[
            matches(
                "says-why",
                r"ERROR cpu1 panic at kernel/src/selftest/fatal.rs:\d+: a panic on purpose, at depth 3$",
            ),
            ordered(
                "names-callers-in-order",
                &[
                    "fatal::panics_innermost+0x",
                    "fatal::panics_between+0x",
                    "fatal::panics_outermost+0x",
                    "launch::other_cpu+0x",
                    "smp::entry+0x",
                ],
            ),
        ],
    ),
    failing(
        "fault",
        "test=fault",
        &[Kind::QemuSvm],
        &[
            has(
                "decodes-the-error",
                "page fault: write to 0xdeadbeef008, which is not mapped (error code 0x2)",
            ),
            ordered(
                "shows-registers",
                &["cr2 00000deadbeef008", " rax ", " r15 "],
            ),
            ordered(
                "names-the-function",
                &["fatal::faults+0x", "launch::other_cpu+0x", "smp::entry+0x"],
            ),
        ],
    ),
    failing(
        "stack",
        "test=stack",
        &[Kind::QemuSvm, Kind::BochsVmx],
        &[
            ordered(
                "says-that-the-stack-overflowed",
                &["double fault", "the stack has overflowed"],
            ),
            ordered(
                "names-the-function",
                &[
                    "fatal::overflows_deeper+0x",
                    " times more",
                    "fatal::overflows+0x",
                    "smp::entry+0x",
                ],
            ),
        ],
    ),
    failing(
        "again",
        "test=again",
        &[Kind::QemuSvm],
        &[has(
            "says-so",
            "plinth: panic during a panic: a second panic on purpose",
        )],
    ),
    // A CPU that stays in the kernel for more than a second while guests run.
    Scenario {
        name: "hang",
        machines: &[Kind::QemuSvm, Kind::BochsVmx],
        command_line: "test=hang",
        guests: Some(&[]),
        script: &[
            Step::Type("sleep 3"),
            Step::Type("dmesg"),
            Step::Type("shutdown 0"),
        ],
        expectations: &[
            ordered(
                "another-cpu-says-where-it-is",
                &[
                    "ERROR cpu1 cpu0 has been in the kernel for 1",
                    "hang::spins+0x",
                    "::live+0x",
                    "launch::launch+0x",
                ],
            ),
            ordered("it-goes-on", &["the kernel goes on", "plinth> shutdown 0"]),
        ],
        ..DEFAULT
    },
    // A CPU that the firmware names does not answer. Bochs's names none otherwise, so that only the first one is left there.
    Scenario {
        name: "absent-cpu",
        machines: &[Kind::QemuSvm, Kind::BochsVmx],
        command_line: "test=absent guests=hello",
        guests: Some(&["hello"]),
        expectations: &[
            has(
                "it-is-told",
                "WARN  cpu0 the CPU with APIC id 85 does not answer and stays off",
            ),
            matches(
                "the-others-start",
                r"\b(2 CPUs, .*PIC, ACPI|1 CPU, .*PIC, no ACPI)$",
            ),
            has("guests-run", "hello ended: status 0"),
            has(
                "all-as-expected",
                "all guests have ended, 0 of them otherwise than expected",
            ),
        ],
        ..DEFAULT
    },
    // NMIs that no CPU has sent, at any moment: guests notice nothing of them.
    Scenario {
        name: "nmis",
        machines: &[Kind::QemuSvm],
        guests: Some(&["privileged", "realmode"]),
        script: &[
            Step::Type("run privileged"),
            Step::Type("run realmode"),
            Step::Type("dmesg"),
            Step::Type("shutdown 0"),
        ],
        disturbance: Some(Disturbance::Nmis),
        suites: &["privileged", "realmode"],
        expectations: &[
            matches("are-told-once", r"WARN .*an NMI came that no CPU had sent"),
            has("privileged-ends-well", "privileged ended: status 0"),
            has("realmode-ends-well", "realmode ended: status 0"),
            never("no-panic", "panic at"),
            never("no-error", " ERROR "),
        ],
        ..DEFAULT
    },
    // An error that the hardware cannot correct is the machine's end, but an orderly one.
    Scenario {
        name: "machine-check",
        machines: &[Kind::QemuSvm],
        guests: Some(&[]),
        disturbance: Some(Disturbance::MachineCheck),
        status: 101,
        expectations: &[ordered(
            "tells-what-the-banks-hold",
            &[
                "ERROR cpu1 panic at ",
                "machine check: MCG_STATUS 0x4",
                "bank 2: uncorrected error 0x0150 (0x0000), status 0xb600000000000150, address 0x12345000",
                " rip ",
            ],
        )],
        ..DEFAULT
    },
    Scenario {
        name: "reboot",
        command_line: "test=end end=reboot",
        guests: Some(&[]),
        machines: &[Kind::QemuSvm],
        ..DEFAULT
    },
];

const fn has(name: &'static str, text: &'static str) -> Expectation {
    Expectation {
        name,
        pattern: Pattern::Has(text),
    }
}

const fn matches(name: &'static str, regex: &'static str) -> Expectation {
    Expectation {
        name,
        pattern: Pattern::Matches(regex),
    }
}

const fn ordered(name: &'static str, texts: &'static [&'static str]) -> Expectation {
    Expectation {
        name,
        pattern: Pattern::Ordered(texts),
    }
}

const fn never(name: &'static str, text: &'static str) -> Expectation {
    Expectation {
        name,
        pattern: Pattern::Never(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique_and_fit_for_files() {
        let mut names = BTreeSet::new();
        for scenario in ALL {
            assert!(names.insert(scenario.name), "{} twice", scenario.name);
            assert!(
                scenario
                    .name
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || c == '-'),
                "{}",
                scenario.name
            );
            assert!(!scenario.machines.is_empty() && scenario.smp > 0 && scenario.timeout > 0);
            let expectations: BTreeSet<_> = scenario
                .expectations
                .iter()
                .map(|expectation| expectation.name)
                .collect();
            assert_eq!(
                expectations.len(),
                scenario.expectations.len(),
                "{}",
                scenario.name
            );
            for expectation in scenario.expectations {
                if let Pattern::Matches(pattern) = expectation.pattern {
                    regex::Regex::new(pattern).unwrap();
                }
            }
        }
    }

    #[test]
    fn kvm_stands_in_for_svm() {
        let scenario = Scenario {
            machines: &[Kind::QemuSvm],
            ..DEFAULT
        };
        assert!(scenario.runs_on(Kind::QemuKvm) && !scenario.runs_on(Kind::BochsVmx));
    }

    #[test]
    fn filters_match_what_can_come() {
        let plain = Scenario {
            expectations: &[Expectation {
                name: "speaks",
                pattern: Pattern::Has("x"),
            }],
            ..DEFAULT
        };
        for (filter, good) in [
            ("", true),
            ("boot", true),
            ("m/boot/speaks", true),
            ("speaks", true),
            ("hello", false),
            ("host/", false),
        ] {
            assert_eq!(plain.may_match("m/boot", filter), good, "{filter}");
        }
        let suite = Scenario {
            suites: &["hello"],
            ..DEFAULT
        };
        for (filter, good) in [
            ("hello::a", true),
            ("m/boot/hello::a", true),
            ("boot/hello", true),
            ("n/boot/hello", false),
        ] {
            assert_eq!(suite.may_match("m/boot", filter), good, "{filter}");
        }
    }
}
