//! Exit codes (APM2 appendix C): an open set, as newer CPUs add to it.

use core::fmt;

/// Why #VMEXIT took place.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(transparent)]
pub struct ExitCode(pub u64);

macro_rules! codes {
    ($($name:ident = $value:literal,)*) => {
        #[expect(missing_docs, reason = "the codes' names are those of the manual, less VMEXIT_")]
        impl ExitCode {
            $(pub const $name: Self = Self($value);)*

            /// Every code with a name of its own; those of control registers, debug registers and exceptions are ranges.
            pub const NAMED: &'static [(Self, &'static str)] = &[$((Self::$name, stringify!($name)),)*];
        }
    };
}

codes! {
    INTR = 0x60,
    NMI = 0x61,
    SMI = 0x62,
    INIT = 0x63,
    VINTR = 0x64,
    CR0_SEL_WRITE = 0x65,
    IDTR_READ = 0x66,
    GDTR_READ = 0x67,
    LDTR_READ = 0x68,
    TR_READ = 0x69,
    IDTR_WRITE = 0x6a,
    GDTR_WRITE = 0x6b,
    LDTR_WRITE = 0x6c,
    TR_WRITE = 0x6d,
    RDTSC = 0x6e,
    RDPMC = 0x6f,
    PUSHF = 0x70,
    POPF = 0x71,
    CPUID = 0x72,
    RSM = 0x73,
    IRET = 0x74,
    SWINT = 0x75,
    INVD = 0x76,
    PAUSE = 0x77,
    HLT = 0x78,
    INVLPG = 0x79,
    INVLPGA = 0x7a,
    IOIO = 0x7b,
    MSR = 0x7c,
    TASK_SWITCH = 0x7d,
    FERR_FREEZE = 0x7e,
    SHUTDOWN = 0x7f,
    VMRUN = 0x80,
    VMMCALL = 0x81,
    VMLOAD = 0x82,
    VMSAVE = 0x83,
    STGI = 0x84,
    CLGI = 0x85,
    SKINIT = 0x86,
    RDTSCP = 0x87,
    ICEBP = 0x88,
    WBINVD = 0x89,
    MONITOR = 0x8a,
    MWAIT = 0x8b,
    MWAIT_CONDITIONAL = 0x8c,
    XSETBV = 0x8d,
    RDPRU = 0x8e,
    EFER_WRITE_TRAP = 0x8f,
    INVLPGB = 0xa0,
    INVLPGB_ILLEGAL = 0xa1,
    INVPCID = 0xa2,
    MCOMMIT = 0xa3,
    TLBSYNC = 0xa4,
    BUS_LOCK = 0xa5,
    IDLE_HLT = 0xa6,
    NPF = 0x400,
    AVIC_INCOMPLETE_IPI = 0x401,
    AVIC_NOACCEL = 0x402,
    VMGEXIT = 0x403,
    INVALID = 0xffff_ffff_ffff_ffff,
    BUSY = 0xffff_ffff_ffff_fffe,
    IDLE_REQUIRED = 0xffff_ffff_ffff_fffd,
    INVALID_PMC = 0xffff_ffff_ffff_fffc,
}

impl ExitCode {
    /// The name of a code that stands alone.
    pub fn name(self) -> Option<&'static str> {
        Self::NAMED
            .iter()
            .find(|(code, _)| *code == self)
            .map(|(_, name)| *name)
    }

    /// The code in 64 bits: some implementations write the lower half only, and the highest codes are negative numbers.
    pub const fn widened(self) -> Self {
        if self.0 >> 31 == 1 {
            Self(self.0 | !0xffff_ffff)
        } else {
            self
        }
    }

    /// The code of an intercepted exception.
    pub const fn exception(vector: u8) -> Self {
        Self(0x40 + vector as u64)
    }
}

impl fmt::Display for ExitCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let code = self.0;
        let low = code & 0xf;
        match code {
            0x00..=0x0f => write!(f, "CR{low}_READ"),
            0x10..=0x1f => write!(f, "CR{low}_WRITE"),
            0x20..=0x2f => write!(f, "DR{low}_READ"),
            0x30..=0x3f => write!(f, "DR{low}_WRITE"),
            0x40..=0x5f => write!(f, "EXCP{}", code - 0x40),
            0x90..=0x9f => write!(f, "CR{low}_WRITE_TRAP"),
            _ => match self.name() {
                Some(name) => f.write_str(name),
                None => write!(f, "{code:#x}, which no manual names"),
            },
        }
    }
}

impl fmt::Debug for ExitCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_of_appendix_c_has_a_name() {
        let ranges = (0..=0xa6)
            .chain(0x400..=0x403)
            .chain(u64::MAX - 3..=u64::MAX);
        for code in ranges {
            assert!(
                !ExitCode(code).to_string().contains("no manual"),
                "{code:#x}"
            );
        }
        assert_eq!(ExitCode(0x14).to_string(), "CR4_WRITE");
        assert_eq!(ExitCode(0x52).to_string(), "EXCP18");
        assert_eq!(ExitCode(0x404).to_string(), "0x404, which no manual names");
    }

    #[test]
    fn half_a_negative_code_is_the_same_code() {
        assert_eq!(ExitCode(0xffff_ffff).widened(), ExitCode::INVALID);
        assert_eq!(ExitCode(0xffff_fffe).widened(), ExitCode::BUSY);
        assert_eq!(ExitCode::INVALID.widened(), ExitCode::INVALID);
        assert_eq!(ExitCode::NPF.widened(), ExitCode::NPF);
    }

    #[test]
    fn codes_are_named_once() {
        for (at, (code, name)) in ExitCode::NAMED.iter().enumerate() {
            for (other, other_name) in &ExitCode::NAMED[at + 1..] {
                assert_ne!(code, other, "{name} and {other_name}");
            }
        }
    }
}
