//! The shadow of STI and MOV SS, in which a guest takes no interrupt, kept where VMRUN forgets it.
//!
//! QEMU's VMRUN does not load the shadow (APM2 15.21.5): an interrupt could come between STI and HLT, which then waited for another. An exit that
//! is not an instruction's, at the place of an exit in a shadow, is taken for one before that instruction: the shadow holds. It
//! may be another time that the guest comes there, without a shadow, so not many such exits in a row are believed. Where VMRUN
//! loads the shadow, what is taken for one by mistake delays an interrupt by an instruction.

use super::exit_code::ExitCode;

/// Exits in a row that are believed. Interrupts follow each other so closely seldom, but for the first: what another CPU sends.
const MOST: u8 = 8;

/// The shadow that a vCPU was in at its last exit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Shadow {
    /// RIP of that exit.
    at: Option<u64>,
    /// Exits there that did not say that it is in a shadow.
    silent: u8,
}

impl Shadow {
    /// Whether there is one to keep.
    #[inline(always)]
    pub const fn is_kept(&self) -> bool {
        self.at.is_some()
    }

    /// An exit at `rip`, which says or does not say that the instruction there is in a shadow; whether it is.
    pub fn at_exit(&mut self, code: ExitCode, rip: u64, is_told: bool) -> bool {
        const BEFORE_AN_INSTRUCTION: [ExitCode; 5] = [
            ExitCode::INTR,
            ExitCode::NMI,
            ExitCode::SMI,
            ExitCode::INIT,
            ExitCode::VINTR,
        ];
        let is_same = self.at == Some(rip) && BEFORE_AN_INSTRUCTION.contains(&code);
        if is_told {
            *self = Self {
                at: Some(rip),
                silent: 0,
            };
        } else if is_same && self.silent < MOST {
            self.silent += 1;
        } else {
            *self = Self::default();
        }
        self.is_kept()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A vCPU that was interrupted in a shadow.
    fn interrupted_at(rip: u64) -> Shadow {
        let mut shadow = Shadow::default();
        assert!(shadow.at_exit(ExitCode::INTR, rip, true));
        shadow
    }

    #[test]
    fn holds_from_interrupt_to_interrupt() {
        let mut shadow = interrupted_at(0x1000);
        for code in [ExitCode::VINTR, ExitCode::INTR, ExitCode::NMI] {
            assert!(shadow.at_exit(code, 0x1000, false), "{code:?}");
            assert!(shadow.is_kept());
        }
    }

    #[test]
    fn ends_with_its_instruction() {
        let mut shadow = interrupted_at(0x1000);
        assert!(
            !shadow.at_exit(ExitCode::HLT, 0x1000, false),
            "the instruction"
        );
        assert!(!shadow.at_exit(ExitCode::INTR, 0x1000, false), "for good");
        let mut shadow = interrupted_at(0x1000);
        assert!(
            !shadow.at_exit(ExitCode::INTR, 0x1001, false),
            "the one after it"
        );
        assert!(!shadow.at_exit(ExitCode::INTR, 0x1000, false), "for good");
    }

    #[test]
    fn without_one_nothing_is_kept() {
        let mut shadow = Shadow::default();
        assert!(!shadow.at_exit(ExitCode::INTR, 0x1000, false));
        assert!(!shadow.at_exit(ExitCode::VINTR, 0x1000, false));
        assert!(!shadow.is_kept());
    }

    #[test]
    fn a_guest_that_spins_there_gets_its_interrupt_in_the_end() {
        let mut shadow = interrupted_at(0x1000);
        let held = (0..100).filter(|_| shadow.at_exit(ExitCode::INTR, 0x1000, false));
        assert_eq!(held.count(), usize::from(MOST));
        assert!(shadow.at_exit(ExitCode::INTR, 0x1000, true), "another STI");
    }
}
