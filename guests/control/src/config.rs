//! Machine files: what a machine is to be, in TOML.
//!
//! `docs/control.md` lists the keys. What is not known or out of range is an error with its line and key.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use core::marker::PhantomData;
use core::str::FromStr;

use plinth_abi::Schedule;
use plinth_abi::domain::{MAX_VCPUS, NAME};
use plinth_image::Format;
use serde::de::{self, Deserialize, Deserializer, Visitor};
use toml::de::DeTable;

use crate::ending::Expect;
use crate::suggest;

const MIB: u64 = 1 << 20;
/// Memory of a machine whose file does not say how much.
const USUAL_MEMORY: Memory = Memory(4 * MIB);
/// The least and the most memory that a machine can be given.
const LEAST_MEMORY: u64 = 64 << 10;
const MOST_MEMORY: u64 = 1 << 40;
/// Longest command line in bytes: it shares a page with the start information.
pub const COMMAND_LINE: usize = 2048;
/// Budget of a machine that can make domains and does not say of how much.
const USUAL_BUDGET: u64 = 64 * MIB;
/// Time limit of a machine that has an image but no file.
const USUAL_LIMIT: Seconds = Seconds(60_000_000_000);

/// A machine, as its file describes it.
#[derive(Clone, PartialEq, Debug, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Machine {
    /// RAM.
    pub memory: Memory,
    /// vCPUs, 1 to 64.
    pub vcpus: Bounded<1, { MAX_VCPUS as i64 }>,
    /// The image's path in the archive; empty: `guests/NAME`.
    pub image: String,
    /// What format the image has; it tells by itself, but for raw firmware.
    pub format: Option<Word<Format>>,
    /// Path of the initial RAM disk.
    pub initrd: Option<String>,
    /// Paths of modules that a Multiboot or PVH image is given.
    pub modules: Vec<String>,
    /// What machine the guest sees; unless said, the one that images of the format expect.
    pub platform: Option<Word<Platform>>,
    /// What the guest is told at its start.
    pub command_line: CommandLine,
    /// Weight of each vCPU.
    pub weight: Bounded<{ Schedule::MIN_WEIGHT as i64 }, { Schedule::MAX_WEIGHT as i64 }>,
    /// Most of a CPU's time that each vCPU gets, in percent; 0: as much as there is.
    pub cap: Bounded<0, 100>,
    /// The CPU that all vCPUs run on.
    pub cpu: Option<Bounded<0, { u16::MAX as i64 }>>,
    /// Devices that the control guest serves; unless said, all of a PC for a PC, else none.
    pub devices: Option<Vec<Word<Device>>>,
    /// Whether it starts with the control guest.
    pub autostart: bool,
    /// What follows its end.
    pub on_end: Word<OnEnd>,
    /// What follows when the guest resets its machine.
    pub on_reboot: Word<OnEnd>,
    /// How it should end.
    pub expect: Word<Expect>,
    /// CPU time after which it is killed, all vCPUs together.
    pub time_limit: Option<Seconds>,
    /// What of the control guest's authority it gets.
    pub handles: Vec<Word<Grant>>,
    /// Memory beyond its own that it can give to domains that it makes.
    budget: Option<Memory>,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            memory: USUAL_MEMORY,
            vcpus: Bounded(1),
            image: String::new(),
            format: None,
            initrd: None,
            modules: Vec::new(),
            platform: None,
            command_line: CommandLine::default(),
            weight: Bounded(Schedule::USUAL.weight),
            cap: Bounded(Schedule::USUAL.cap),
            cpu: None,
            devices: None,
            autostart: false,
            on_end: Word(OnEnd::Keep),
            on_reboot: Word(OnEnd::Restart),
            expect: Word(Expect::SUCCESS),
            time_limit: None,
            handles: Vec::new(),
            budget: None,
        }
    }
}

impl Machine {
    /// Reads the file of the machine called `name`.
    pub fn parse(name: &str, text: &str) -> Result<Self, FileError> {
        let mut machine: Self =
            toml::from_str(text).map_err(|error| FileError::new(text, &error))?;
        if machine.image.is_empty() {
            machine.image = usual_image(name);
        }
        // What is listed twice is given once.
        machine.handles.sort();
        machine.handles.dedup();
        Ok(machine)
    }

    /// A machine of which there is an image, but no file.
    pub fn without_file(name: &str) -> Self {
        Self {
            image: usual_image(name),
            time_limit: Some(USUAL_LIMIT),
            ..Self::default()
        }
    }

    /// How its vCPUs are scheduled.
    pub fn schedule(&self) -> Schedule {
        Schedule {
            weight: self.weight.0,
            cap: self.cap.0,
            cpu: self.cpu.map_or(Schedule::ANY_CPU, |cpu| cpu.0),
            reserved: 0,
        }
    }

    /// Memory in bytes beyond its own that it can give to domains that it makes.
    pub fn budget(&self) -> u64 {
        let usual = if self.grants(Grant::System) {
            USUAL_BUDGET
        } else {
            0
        };
        self.budget.map_or(usual, |budget| budget.0)
    }

    /// Whether it is given this.
    pub fn grants(&self, grant: Grant) -> bool {
        self.handles.contains(&Word(grant))
    }

    /// What machine the guest sees, whose image is of this format. Firmware of Plinth's own format comes without a PC.
    pub fn platform(&self, format: Format, is_elf: bool) -> Platform {
        match (&self.platform, format) {
            (Some(platform), _) => platform.0,
            (None, Format::Plinth) => Platform::Plain,
            (None, Format::Firmware) if is_elf => Platform::Plain,
            (None, _) => Platform::Pc,
        }
    }

    /// Whether it has this device on that platform.
    pub fn has(&self, device: Device, platform: Platform) -> bool {
        match &self.devices {
            Some(devices) => devices.contains(&Word(device)),
            None => platform == Platform::Pc && device.is_usual(),
        }
    }

    /// Whether it finds start information at its start.
    pub fn has_start_info(&self) -> bool {
        !self.handles.is_empty() || !self.command_line.0.is_empty()
    }
}

/// Where the image of a machine called `name` is, unless its file says otherwise.
pub fn usual_image(name: &str) -> String {
    format!("guests/{name}")
}

/// How long after its start a machine is restarted that has ended so often in a row soon after it: 1 second, and twice as
/// long each time up to a minute.
pub fn backoff(quick_ends: u32) -> Seconds {
    const MOST: u64 = 60;
    let seconds = 1u64
        .checked_shl(quick_ends.saturating_sub(1))
        .unwrap_or(MOST);
    Seconds(seconds.min(MOST) * 1_000_000_000)
}

/// Whether a domain can be called so: 1 to 32 letters, digits, `-`, `_` or `.`, not digits only, which would be a number.
pub fn is_good_name(name: &str) -> bool {
    let letters = name
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    (1..=NAME).contains(&name.len()) && letters && !name.bytes().all(|byte| byte.is_ascii_digit())
}

/// What is wrong with a machine file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileError {
    /// The line, from 1.
    pub line: usize,
    /// The key, where it is known.
    pub key: Option<String>,
    /// What is wrong.
    pub message: String,
}

impl FileError {
    fn new(text: &str, error: &toml::de::Error) -> Self {
        let at = error.span().map_or(0, |span| span.start);
        let before = text.as_bytes().get(..at).unwrap_or_default();
        let key = key_at(text, at);
        let mut message = error.message().trim_end().replace('\n', ", ");
        if let Some(key) = key
            .as_deref()
            .filter(|_| message.starts_with("unknown field"))
        {
            message = "there is no such key".to_owned();
            if let Some(near) = suggest::nearest(key, KEYS) {
                message += &format!("; did you mean `{near}`?");
            } else {
                message += &format!("; there are: {}", crate::format::listed(KEYS));
            }
        }
        Self {
            line: 1 + before.iter().filter(|&&byte| byte == b'\n').count(),
            key,
            message,
        }
    }
}

/// The keys, for who mistyped one.
const KEYS: [&str; 19] = [
    "memory",
    "vcpus",
    "image",
    "format",
    "initrd",
    "modules",
    "platform",
    "command-line",
    "weight",
    "cap",
    "cpu",
    "devices",
    "autostart",
    "on-end",
    "on-reboot",
    "expect",
    "time-limit",
    "handles",
    "budget",
];

/// The top-level key at this place of the text, or whose value is there.
fn key_at(text: &str, at: usize) -> Option<String> {
    let table = DeTable::parse(text).ok()?;
    table
        .get_ref()
        .iter()
        .find(|(key, value)| {
            (key.span().start..=key.span().end).contains(&at)
                || (value.span().start..=value.span().end).contains(&at)
        })
        .map(|(key, _)| key.get_ref().to_string())
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: ", self.line)?;
        if let Some(key) = &self.key {
            write!(f, "`{key}`: ")?;
        }
        f.write_str(&self.message)
    }
}

/// An amount of memory in bytes, a multiple of 4 KiB.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Memory(pub u64);

impl Memory {
    const EXPECTED: &str =
        "expected an amount such as \"4 MiB\", \"512 KiB\" or \"1 GiB\", or a number of MiB";

    fn new(bytes: Option<u64>) -> Result<Self, String> {
        let bytes = bytes.ok_or(Self::EXPECTED)?;
        if !bytes.is_multiple_of(4096) {
            return Err("it must be a multiple of 4 KiB".to_owned());
        }
        if !(LEAST_MEMORY..=MOST_MEMORY).contains(&bytes) {
            return Err(format!(
                "it must be {} to {}",
                crate::format::size(LEAST_MEMORY),
                crate::format::size(MOST_MEMORY)
            ));
        }
        Ok(Self(bytes))
    }
}

impl FromStr for Memory {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let units = [("KiB", 1 << 10), ("MiB", MIB), ("GiB", 1 << 30)];
        let bytes = units.into_iter().find_map(|(unit, scale)| {
            let number: u64 = text.strip_suffix(unit)?.trim_end().parse().ok()?;
            number.checked_mul(scale)
        });
        Self::new(bytes)
    }
}

impl<'de> Deserialize<'de> for Memory {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Amount;
        impl Visitor<'_> for Amount {
            type Value = Memory;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an amount such as \"4 MiB\", or a number of MiB")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Memory, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Memory, E> {
                let bytes = u64::try_from(number)
                    .ok()
                    .and_then(|number| number.checked_mul(MIB));
                Memory::new(bytes).map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Amount)
    }
}

/// A whole number within bounds, which are at least 0 and at most `u32::MAX`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bounded<const LEAST: i64, const MOST: i64>(pub u32);

impl<'de, const LEAST: i64, const MOST: i64> Deserialize<'de> for Bounded<LEAST, MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = i64::deserialize(deserializer)?;
        u32::try_from(number)
            .ok()
            .filter(|_| (LEAST..=MOST).contains(&number))
            .map(Self)
            .ok_or_else(|| de::Error::custom(format_args!("{number} is not {LEAST} to {MOST}")))
    }
}

/// A command line of at most [`COMMAND_LINE`] bytes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CommandLine(pub String);

impl<'de> Deserialize<'de> for CommandLine {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.len() > COMMAND_LINE {
            let length = text.len();
            return Err(de::Error::custom(format_args!(
                "it has {length} bytes, more than {COMMAND_LINE}"
            )));
        }
        Ok(Self(text))
    }
}

/// A time in nanoseconds, which a file has in seconds: whole, or with a fraction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seconds(pub u64);

impl Seconds {
    /// Most seconds: eleven days.
    const MOST: f64 = 1e6;

    fn new(seconds: f64) -> Result<Self, &'static str> {
        // Not so either for what is no number.
        if !(1e-3..=Self::MOST).contains(&seconds) {
            return Err("it must be 0.001 to 1000000 seconds");
        }
        Ok(Self((seconds * 1e9) as u64))
    }
}

impl FromStr for Seconds {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let seconds = text.parse().map_err(|_| "expected a number of seconds")?;
        Self::new(seconds)
    }
}

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(f64::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

/// A value that a file has as one of some words.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Word<T>(pub T);

impl<'de, T: FromStr<Err = &'static str>> Deserialize<'de> for Word<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Words<T>(PhantomData<T>);
        impl<T: FromStr<Err = &'static str>> Visitor<'_> for Words<T> {
            type Value = Word<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Word<T>, E> {
                text.parse()
                    .map(Word)
                    .map_err(|expected| E::custom(format_args!("`{text}` is none: {expected}")))
            }
        }
        deserializer.deserialize_str(Words(PhantomData))
    }
}

/// What follows a machine's end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnEnd {
    /// What is left of it stays, to be looked at.
    Keep,
    /// It is made and started anew.
    Restart,
    /// What is left of it is taken back.
    Destroy,
}

impl OnEnd {
    /// The policy as a file has it.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::Restart => "restart",
            Self::Destroy => "destroy",
        }
    }
}

impl FromStr for OnEnd {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "keep" => Ok(Self::Keep),
            "restart" => Ok(Self::Restart),
            "destroy" => Ok(Self::Destroy),
            _ => Err("expected `keep`, `restart` or `destroy`"),
        }
    }
}

/// A device that the control guest serves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Device {
    /// Port 0xe9, as Bochs and QEMU have it: what is written there goes to the domain's console.
    DebugConsole,
    /// Port 0xf4, as QEMU has it: what is written there ends the domain.
    DebugExit,
    /// COM1, a 16550A, which is the domain's console.
    Com1,
    /// The pair of 8259A interrupt controllers.
    Pic,
    /// The 8254 timer.
    Pit,
    /// The MC146818 clock.
    Rtc,
    /// ACPI's fixed hardware, and its tables.
    Acpi,
    /// The keyboard controller, without a keyboard.
    I8042,
    /// PCI's configuration space.
    Pci,
}

impl Device {
    /// Every device by its name.
    const NAMED: [(&str, Self); 9] = [
        ("debug-console", Self::DebugConsole),
        ("debug-exit", Self::DebugExit),
        ("com1", Self::Com1),
        ("pic", Self::Pic),
        ("pit", Self::Pit),
        ("rtc", Self::Rtc),
        ("acpi", Self::Acpi),
        ("i8042", Self::I8042),
        ("pci", Self::Pci),
    ];

    /// Whether a PC has it unless its file says otherwise.
    const fn is_usual(self) -> bool {
        !matches!(self, Self::DebugConsole | Self::DebugExit)
    }
}

/// What machine a guest sees.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Platform {
    /// vCPUs, memory and hypercalls.
    Plain,
    /// A PC: local APICs, an I/O APIC, and devices at its ports.
    Pc,
}

impl FromStr for Platform {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "plain" => Ok(Self::Plain),
            "pc" => Ok(Self::Pc),
            _ => Err("expected `plain` or `pc`"),
        }
    }
}

impl FromStr for Device {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::NAMED
            .into_iter()
            .find(|(name, _)| *name == text)
            .map(|(_, device)| device)
            .ok_or("expected `debug-console`, `debug-exit`, `com1`, `pic`, `pit`, `rtc`, `acpi`, `i8042` or `pci`")
    }
}

/// A part of the control guest's authority, or of the domain's own.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Grant {
    /// The system: as much as the control guest can do.
    System,
    /// The domain itself.
    Itself,
    /// Its vCPU 0.
    Vcpu,
    /// The module archive, mapped read-only.
    Modules,
}

impl FromStr for Grant {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "system" => Ok(Self::System),
            "self" => Ok(Self::Itself),
            "vcpu" => Ok(Self::Vcpu),
            "modules" => Ok(Self::Modules),
            _ => Err("expected `system`, `self`, `vcpu` or `modules`"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn error(text: &str) -> String {
        Machine::parse("x", text).unwrap_err().to_string()
    }

    #[test]
    fn an_empty_file_is_a_small_machine() {
        let machine = Machine::parse("hello", "# nothing\n").unwrap();
        assert_eq!(
            machine,
            Machine {
                image: "guests/hello".into(),
                ..Machine::default()
            }
        );
        assert_eq!(machine.memory, Memory(4 << 20));
        assert_eq!(machine.schedule(), Schedule::USUAL);
        assert!(!machine.has_start_info());
    }

    #[test]
    fn every_key_is_read() {
        let machine = Machine::parse(
            "x",
            r#"
            memory = "512 KiB"
            vcpus = 2
            image = "guests/other"
            format = "multiboot"
            initrd = "a/initrd"
            modules = ["a/b", "c"]
            platform = "pc"
            command-line = "a b"
            weight = 512
            cap = 25
            cpu = 1
            devices = ["debug-console"]
            autostart = true
            on-end = "restart"
            on-reboot = "destroy"
            expect = "status 3"
            time-limit = 0.5
            handles = ["system", "self", "vcpu", "modules", "self"]
            budget = "1 GiB"
            "#,
        )
        .unwrap();
        assert_eq!(
            machine,
            Machine {
                memory: Memory(512 << 10),
                vcpus: Bounded(2),
                image: "guests/other".into(),
                format: Some(Word(Format::Multiboot)),
                initrd: Some("a/initrd".into()),
                modules: vec!["a/b".into(), "c".into()],
                platform: Some(Word(Platform::Pc)),
                command_line: CommandLine("a b".into()),
                weight: Bounded(512),
                cap: Bounded(25),
                cpu: Some(Bounded(1)),
                devices: Some(vec![Word(Device::DebugConsole)]),
                autostart: true,
                on_end: Word(OnEnd::Restart),
                on_reboot: Word(OnEnd::Destroy),
                expect: Word(Expect::Status(3)),
                time_limit: Some(Seconds(500_000_000)),
                handles: [Grant::System, Grant::Itself, Grant::Vcpu, Grant::Modules]
                    .map(Word)
                    .to_vec(),
                budget: Some(Memory(1 << 30)),
            }
        );
        let schedule = machine.schedule();
        assert_eq!((schedule.weight, schedule.cap, schedule.cpu), (512, 25, 1));
        assert!(machine.has_start_info() && machine.grants(Grant::Vcpu));
        assert_eq!(machine.budget(), 1 << 30);
    }

    #[test]
    fn the_platform_follows_the_image() {
        let machine = Machine::default();
        assert_eq!(machine.platform(Format::Linux, false), Platform::Pc);
        assert_eq!(machine.platform(Format::Firmware, false), Platform::Pc);
        assert_eq!(machine.platform(Format::Firmware, true), Platform::Plain);
        assert_eq!(machine.platform(Format::Plinth, true), Platform::Plain);
        let pc = Machine::parse("x", "platform = \"pc\"\ndevices = [\"com1\"]").unwrap();
        assert_eq!(pc.platform(Format::Plinth, true), Platform::Pc);
        assert!(pc.has(Device::Com1, Platform::Pc) && !pc.has(Device::Rtc, Platform::Pc));
        assert!(
            machine.has(Device::Rtc, Platform::Pc) && !machine.has(Device::Rtc, Platform::Plain)
        );
        assert!(!machine.has(Device::DebugExit, Platform::Pc));
    }

    #[test]
    fn only_who_can_make_domains_has_a_budget_for_them() {
        assert_eq!(Machine::default().budget(), 0);
        let machine = Machine::parse("x", "handles = [\"system\"]").unwrap();
        assert_eq!(machine.budget(), 64 << 20);
    }

    #[test]
    fn memory_has_units() {
        let memory = |value: &str| {
            Machine::parse("x", &format!("memory = {value}")).map(|machine| machine.memory.0)
        };
        assert_eq!(memory("2"), Ok(2 << 20));
        assert_eq!(memory("\"64KiB\""), Ok(64 << 10));
        assert_eq!(memory("\"1 GiB\""), Ok(1 << 30));
        for bad in [
            "0",
            "-1",
            "\"4\"",
            "\"4 MB\"",
            "\"x MiB\"",
            "\"60 KiB\"",
            "\"65 KiB\"",
            "\"99999999999999999999 KiB\"",
            "\"18014398509481984 KiB\"",
            "9223372036854775807",
            "2000000",
            "1.5",
            "true",
        ] {
            assert_eq!(
                memory(bad).unwrap_err().key.as_deref(),
                Some("memory"),
                "{bad}"
            );
        }
    }

    #[test]
    fn errors_name_line_and_key() {
        assert_eq!(
            error("vcpus = 1\n\nmemroy = \"4 MiB\"\n"),
            "line 3: `memroy`: there is no such key; did you mean `memory`?"
        );
        assert!(
            error("colour = 1")
                .starts_with("line 1: `colour`: there is no such key; there are: memory, vcpus,")
        );
        assert_eq!(error("\nvcpus = 0"), "line 2: `vcpus`: 0 is not 1 to 64");
        assert_eq!(error("vcpus = 65"), "line 1: `vcpus`: 65 is not 1 to 64");
        assert_eq!(
            error("weight = 15"),
            "line 1: `weight`: 15 is not 16 to 4096"
        );
        assert_eq!(error("cap = 101"), "line 1: `cap`: 101 is not 0 to 100");
        assert_eq!(error("cpu = -1"), "line 1: `cpu`: -1 is not 0 to 65535");
        assert_eq!(
            error("on-end = \"again\""),
            "line 1: `on-end`: `again` is none: expected `keep`, `restart` or `destroy`"
        );
        assert_eq!(
            error("devices = [\n  \"debug-console\",\n  \"floppy\",\n]"),
            "line 3: `devices`: `floppy` is none: expected `debug-console`, `debug-exit`, `com1`, `pic`, `pit`, `rtc`, `acpi`, `i8042` or `pci`"
        );
        assert_eq!(
            error("handles = [\"root\"]"),
            "line 1: `handles`: `root` is none: expected `system`, `self`, `vcpu` or `modules`"
        );
        for (bad, key) in [
            ("autostart = 1", "autostart"),
            ("image = 1", "image"),
            ("time-limit = 0", "time-limit"),
            ("time-limit = nan", "time-limit"),
            ("time-limit = \"1\"", "time-limit"),
            ("expect = \"success\"", "expect"),
            ("expect = 0", "expect"),
            ("vcpus = \"1\"", "vcpus"),
            ("devices = \"debug-console\"", "devices"),
        ] {
            assert!(
                error(bad).starts_with(&format!("line 1: `{key}`: ")),
                "{}",
                error(bad)
            );
        }
        let long = format!("command-line = \"{}\"", "x".repeat(COMMAND_LINE + 1));
        assert_eq!(
            error(&long),
            "line 1: `command-line`: it has 2049 bytes, more than 2048"
        );
    }

    #[test]
    fn what_is_no_toml_is_an_error_with_its_line() {
        assert!(error("vcpus = 1\nmemory 4\n").starts_with("line 2: "));
        assert!(error("vcpus = 1\nvcpus = 2\n").starts_with("line 2: "));
        assert!(error("[memory]\nsize = 4").contains("line 1: `memory`: "));
    }

    #[test]
    fn the_list_of_keys_is_complete() {
        for key in KEYS {
            // Each is known: an empty array is wrong for most, and never an unknown key.
            let result = Machine::parse("x", &format!("{key} = []"));
            assert!(
                result.is_ok() || !result.unwrap_err().to_string().contains("no such key"),
                "{key}"
            );
        }
    }

    #[test]
    fn names_are_short_words() {
        for good in ["hello", "a", "spin-12", "x.y_z", "1a"] {
            assert!(is_good_name(good), "{good}");
        }
        for bad in ["", "12", "a b", "a/b", "ü", "#x", &"x".repeat(33)] {
            assert!(!is_good_name(bad), "{bad}");
        }
    }

    #[test]
    fn a_crash_loop_slows_down() {
        let seconds =
            [0, 1, 2, 3, 6, 7, 64, 65, u32::MAX].map(|ends| backoff(ends).0 / 1_000_000_000);
        assert_eq!(seconds, [1, 1, 2, 4, 32, 60, 60, 60, 60]);
    }

    proptest! {
        #[test]
        fn no_file_makes_it_panic(text in "(?s).{0,80}") {
            let _ = Machine::parse("x", &text).map_err(|error| error.to_string());
        }

        #[test]
        fn no_value_makes_it_panic(key in prop::sample::select(KEYS.to_vec()), value in "\\PC{0,20}") {
            let _ = Machine::parse("x", &format!("{key} = {value}")).map_err(|error| error.to_string());
        }
    }
}
