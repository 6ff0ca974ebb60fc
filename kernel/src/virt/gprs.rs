//! The general registers that hardware does not switch on entry and exit.

use plinth_abi::VcpuState;

/// General registers in the order of their encoding (SDM vol. 2 table 2-2), so that a ModRM field is an index. The place
/// of RSP is unused: VMCS and VMCB hold it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
#[expect(missing_docs, reason = "the registers' names are their documentation")]
pub struct Gprs {
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rbx: u64,
    pub unused_rsp: u64,
    pub rbp: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
}

impl Gprs {
    /// The register with this encoding; 0 for RSP, which is not here, and beyond 15.
    pub const fn get(&self, number: u8) -> u64 {
        match number {
            0 => self.rax,
            1 => self.rcx,
            2 => self.rdx,
            3 => self.rbx,
            5 => self.rbp,
            6 => self.rsi,
            7 => self.rdi,
            8 => self.r8,
            9 => self.r9,
            10 => self.r10,
            11 => self.r11,
            12 => self.r12,
            13 => self.r13,
            14 => self.r14,
            15 => self.r15,
            _ => 0,
        }
    }

    /// Sets the register with this encoding; nothing for RSP and beyond 15.
    pub const fn set(&mut self, number: u8, value: u64) {
        let register = match number {
            0 => &mut self.rax,
            1 => &mut self.rcx,
            2 => &mut self.rdx,
            3 => &mut self.rbx,
            5 => &mut self.rbp,
            6 => &mut self.rsi,
            7 => &mut self.rdi,
            8 => &mut self.r8,
            9 => &mut self.r9,
            10 => &mut self.r10,
            11 => &mut self.r11,
            12 => &mut self.r12,
            13 => &mut self.r13,
            14 => &mut self.r14,
            15 => &mut self.r15,
            _ => return,
        };
        *register = value;
    }

    /// EDX:EAX, as RDMSR, WRMSR and XSETBV take a 64-bit value.
    pub const fn edx_eax(&self) -> u64 {
        (self.rdx << 32) | (self.rax & 0xffff_ffff)
    }

    /// Sets EDX:EAX; the upper halves become zero, as in any 32-bit write.
    pub const fn set_edx_eax(&mut self, value: u64) {
        self.rax = value & 0xffff_ffff;
        self.rdx = value >> 32;
    }
}

impl From<&VcpuState> for Gprs {
    fn from(state: &VcpuState) -> Self {
        Self {
            unused_rsp: 0,
            rax: state.rax,
            rcx: state.rcx,
            rdx: state.rdx,
            rbx: state.rbx,
            rbp: state.rbp,
            rsi: state.rsi,
            rdi: state.rdi,
            r8: state.r8,
            r9: state.r9,
            r10: state.r10,
            r11: state.r11,
            r12: state.r12,
            r13: state.r13,
            r14: state.r14,
            r15: state.r15,
        }
    }
}
