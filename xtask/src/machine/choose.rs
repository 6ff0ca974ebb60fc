//! Which machine `auto` means.
//!
//! Nested KVM is taken only where the CPU's flags and the kvm module's `nested` parameter both say that a guest gets VMX
//! or SVM. That `/dev/kvm` exists says nothing of the kind.

use std::fs;

use super::{Choice, Kind};

/// What this computer says about its virtualisation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Host {
    /// The text of `/proc/cpuinfo`.
    pub cpuinfo: String,
    /// The `nested` parameter of `kvm_intel`, if that module is there.
    pub nested_intel: Option<String>,
    /// The `nested` parameter of `kvm_amd`, if that module is there.
    pub nested_amd: Option<String>,
    /// Whether this user may open `/dev/kvm`.
    pub device: bool,
}

impl Host {
    /// Looks.
    pub fn look() -> Self {
        let nested = |module: &str| {
            fs::read_to_string(format!("/sys/module/{module}/parameters/nested")).ok()
        };
        Self {
            cpuinfo: fs::read_to_string("/proc/cpuinfo").unwrap_or_default(),
            nested_intel: nested("kvm_intel"),
            nested_amd: nested("kvm_amd"),
            device: fs::OpenOptions::new()
                .read(true)
                .write(true)
                .open("/dev/kvm")
                .is_ok(),
        }
    }

    /// Whether the CPU has a flag.
    pub fn has_flag(&self, flag: &str) -> bool {
        let flags = self
            .cpuinfo
            .lines()
            .find(|line| line.starts_with("flags"))
            .unwrap_or_default();
        flags.split_whitespace().any(|word| word == flag)
    }

    /// Whether a guest of KVM gets VMX or SVM here; either way, why.
    pub fn nested_kvm(&self) -> Result<&'static str, &'static str> {
        let on = |parameter: &Option<String>| {
            parameter
                .as_deref()
                .is_some_and(|text| matches!(text.trim(), "Y" | "y" | "1"))
        };
        let (module, parameter) = match (self.has_flag("vmx"), self.has_flag("svm")) {
            (true, _) => ("kvm_intel", &self.nested_intel),
            (_, true) => ("kvm_amd", &self.nested_amd),
            _ => return Err("the CPU's flags show neither vmx nor svm"),
        };
        match (parameter, on(parameter), self.device, module) {
            (None, ..) => Err("the CPU's kvm module is not loaded"),
            (_, false, ..) => Err("the kvm module's parameter `nested` is off"),
            (_, _, false, _) => Err("/dev/kvm cannot be opened by this user"),
            (.., "kvm_intel") => Ok("the CPU has vmx and kvm_intel's parameter `nested` is on"),
            _ => Ok("the CPU has svm and kvm_amd's parameter `nested` is on"),
        }
    }
}

/// The machine to take, and why in one line.
pub fn choose(choice: Choice, host: &Host) -> (Kind, String) {
    match (choice, host.nested_kvm()) {
        (Choice::Exactly(Kind::QemuKvm), Err(why)) => (
            Kind::QemuKvm,
            format!("as asked, but it will hardly work: {why}"),
        ),
        (Choice::Exactly(kind), _) => (kind, "as asked".to_owned()),
        (Choice::Auto, Ok(why)) => (Kind::QemuKvm, why.to_owned()),
        (Choice::Auto, Err(why)) => (Kind::QemuSvm, format!("no nested KVM: {why}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(flags: &str, intel: Option<&str>, amd: Option<&str>, device: bool) -> Host {
        Host {
            cpuinfo: format!("processor : 0\nflags\t\t: fpu {flags} sse\nbugs : x\n"),
            nested_intel: intel.map(str::to_owned),
            nested_amd: amd.map(str::to_owned),
            device,
        }
    }

    fn auto(host: &Host) -> Kind {
        choose(Choice::Auto, host).0
    }

    #[test]
    fn kvm_needs_flag_parameter_and_device() {
        assert_eq!(auto(&host("vmx", Some("Y\n"), None, true)), Kind::QemuKvm);
        assert_eq!(auto(&host("svm", None, Some("1\n"), true)), Kind::QemuKvm);
        assert_eq!(auto(&host("vmx", Some("N\n"), None, true)), Kind::QemuSvm);
        assert_eq!(auto(&host("svm", None, Some("0"), true)), Kind::QemuSvm);
        assert_eq!(auto(&host("vmx", Some("Y"), None, false)), Kind::QemuSvm);
        assert_eq!(auto(&host("vmx", None, None, true)), Kind::QemuSvm);
    }

    #[test]
    fn a_device_without_flags_is_not_enough() {
        assert_eq!(
            auto(&host("vmmcall", Some("Y"), Some("1"), true)),
            Kind::QemuSvm
        );
        // The other vendor's module says nothing about this CPU.
        assert_eq!(auto(&host("svm", Some("Y"), None, true)), Kind::QemuSvm);
        assert_eq!(auto(&Host::default()), Kind::QemuSvm);
    }

    #[test]
    fn a_wish_is_granted_with_a_warning() {
        let (kind, why) = choose(Choice::Exactly(Kind::QemuKvm), &Host::default());
        assert_eq!(kind, Kind::QemuKvm);
        assert!(why.contains("neither vmx nor svm"));
        assert_eq!(
            choose(Choice::Exactly(Kind::BochsSvm), &Host::default()).0,
            Kind::BochsSvm
        );
    }
}
