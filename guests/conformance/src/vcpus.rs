//! vCPUs: their state, their scheduling, their times, their interrupts.

use plinth_rt::abi::state::part;
use plinth_rt::abi::{
    Call, DomainConfig, DomainState, ObjectType, Schedule, Segment, Status, VcpuInfo, VcpuRun,
    VcpuState, rights,
};
use plinth_rt::object::Vcpu;
use plinth_rt::trap::Gprs;
use plinth_rt::{Outcome, Scratch, Why, check, check_eq, cpu, hypercall, snippet};

use crate::child::{
    After, COUNTERS, Child, DATA, ENTRY, Plan, STACK, Step, Temporary, agents, config, count,
    real_mode, spin, wait,
};
use crate::kit::{MS, Must, Owned, answers, names, raw, refused, refuses, sleep, system, until};
use crate::objects::own_vcpu;

tests!("vcpu":
    create,
    create_too_many,
    create_over_budget,
    open,
    open_bad_index,
    state_after_create,
    state_round_trip,
    state_of_real_mode,
    state_where_it_was_paused,
    state_changed_while_paused,
    state_after_the_end,
    state_bad_part,
    state_bad_length,
    state_impossible,
    state_refused_changes_nothing,
    state_of_itself,
    vector_round_trip,
    vector_is_loaded,
    vector_is_stored,
    vector_impossible,
    schedule,
    schedule_bad_values,
    schedule_pins,
    schedule_moves,
    schedule_weight_counts,
    schedule_cap_counts,
    info,
    info_states,
    info_times_are_its_age,
    info_counts_exits,
    interrupt,
    interrupt_of_itself,
    interrupt_waits_for_sti,
    interrupt_while_paused,
    interrupt_highest_first,
    interrupt_whatever_cr8_says,
    interrupt_bad_vector,
);

fn create() -> Outcome {
    let domain = Temporary::new(&DomainConfig {
        vcpus: 2,
        heap: DomainConfig::usual_heap(2),
        ..config(b"vcpus")
    })?;
    for index in 0..2 {
        let vcpu = domain.create_vcpu().must("create").map(Owned)?;
        names(vcpu.any(), ObjectType::VCPU, rights::VCPU)?;
        let info = vcpu.info().must("info")?;
        check_eq!(info.index, index, "index");
        check!(info.run == VcpuRun::HELD, "{:?}", info.run);
        check!(info.schedule == Schedule::USUAL, "{:?}", info.schedule);
        check_eq!(info.run_ns, 0, "time it ran");
        check_eq!(domain.info().must("info")?.vcpus, index + 1, "vCPUs");
    }
    Ok(())
}

fn create_too_many() -> Outcome {
    let domain = Temporary::new(&config(b"one"))?;
    let _first = domain.create_vcpu().must("create").map(Owned)?;
    refused(
        domain.create_vcpu().map(Owned),
        Status::OVER_BUDGET,
        "the second",
    )?;
    check_eq!(domain.info().must("info")?.vcpus, 1, "vCPUs");
    Ok(())
}

fn create_over_budget() -> Outcome {
    let domain = Temporary::new(&DomainConfig {
        frames: DomainConfig::LEAST_FRAMES,
        heap: DomainConfig::LEAST_HEAP,
        vcpus: 64,
        ..config(b"poor")
    })?;
    let mut made = 0;
    let status = loop {
        match domain.create_vcpu().map(Owned) {
            Ok(_) => made += 1,
            Err(status) => break status,
        }
    };
    check!(status == Status::OVER_BUDGET, "{status:?}");
    check!(made < 8, "{made} vCPUs of 8 frames");
    let info = domain.info().must("info")?;
    check_eq!(info.vcpus, made, "vCPUs");
    check!(
        info.frames <= info.max_frames && info.heap <= info.max_heap,
        "beyond its budget"
    );
    Ok(())
}

fn open() -> Outcome {
    let child = Child::new(&Plan {
        vcpus: 2,
        ..Plan::new(spin())
    })?;
    for index in 0..2 {
        let vcpu = child.domain.open_vcpu(index).must("open").map(Owned)?;
        names(vcpu.any(), ObjectType::VCPU, rights::VCPU)?;
        check_eq!(vcpu.info().must("info")?.index, index, "index");
    }
    Ok(())
}

fn open_bad_index() -> Outcome {
    let child = Child::new(&Plan::new(spin()))?;
    let domain = raw(child.domain.any());
    for index in [1, 2, 63, 64, u64::from(u32::MAX)] {
        refuses(Call::VCPU_OPEN, [domain, index], Status::NOT_FOUND)?;
    }
    for index in [1 << 32, u64::MAX] {
        refuses(Call::VCPU_OPEN, [domain, index], Status::BAD_ARGUMENT)?;
    }
    Ok(())
}

/// The two states must be the same, register by register.
fn same(seen: &VcpuState, expected: &VcpuState) -> Outcome {
    let names = [
        "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12",
        "r13", "r14", "r15", "rip", "rflags",
    ];
    let first = |state: &VcpuState| {
        [
            state.rax,
            state.rcx,
            state.rdx,
            state.rbx,
            state.rsp,
            state.rbp,
            state.rsi,
            state.rdi,
            state.r8,
            state.r9,
            state.r10,
            state.r11,
            state.r12,
            state.r13,
            state.r14,
            state.r15,
            state.rip,
            state.rflags,
        ]
    };
    for (name, (seen, expected)) in names
        .into_iter()
        .zip(first(seen).into_iter().zip(first(expected)))
    {
        check!(
            seen == expected,
            "{name}: {seen:#x}, expected {expected:#x}"
        );
    }
    let names = [
        "es", "cs", "ss", "ds", "fs", "gs", "ldtr", "tr", "gdtr", "idtr",
    ];
    let segments = |state: &VcpuState| {
        [
            state.es, state.cs, state.ss, state.ds, state.fs, state.gs, state.ldtr, state.tr,
            state.gdtr, state.idtr,
        ]
    };
    for (name, (seen, expected)) in names
        .into_iter()
        .zip(segments(seen).into_iter().zip(segments(expected)))
    {
        check!(
            seen == expected,
            "{name}: {seen:x?}, expected {expected:x?}"
        );
    }
    let names = [
        "cr0",
        "cr2",
        "cr3",
        "cr4",
        "xcr0",
        "dr0",
        "dr1",
        "dr2",
        "dr3",
        "dr6",
        "dr7",
        "efer",
        "pat",
        "star",
        "lstar",
        "cstar",
        "sfmask",
        "kernel_gs_base",
        "sysenter_cs",
        "sysenter_esp",
        "sysenter_eip",
        "tsc_aux",
    ];
    let last = |state: &VcpuState| {
        [
            state.cr0,
            state.cr2,
            state.cr3,
            state.cr4,
            state.xcr0,
            state.dr[0],
            state.dr[1],
            state.dr[2],
            state.dr[3],
            state.dr6,
            state.dr7,
            state.efer,
            state.pat,
            state.star,
            state.lstar,
            state.cstar,
            state.sfmask,
            state.kernel_gs_base,
            state.sysenter_cs,
            state.sysenter_esp,
            state.sysenter_eip,
            state.tsc_aux,
        ]
    };
    for (name, (seen, expected)) in names
        .into_iter()
        .zip(last(seen).into_iter().zip(last(expected)))
    {
        check!(
            seen == expected,
            "{name}: {seen:#x}, expected {expected:#x}"
        );
    }
    Ok(())
}

fn state_after_create() -> Outcome {
    let domain = Temporary::new(&config(b"reset"))?;
    let vcpu = domain.create_vcpu().must("create").map(Owned)?;
    same(&vcpu.state().must("state")?, &VcpuState::RESET)
}

/// A state of long mode as a CPU with VMX keeps it: a segment that is longer than 1 MiB has G set (SDM vol. 3 27.3.1.2).
fn long_mode(entry: u64, stack: u64, cr3: u64) -> VcpuState {
    let mut state = VcpuState::long_mode(entry, stack, cr3);
    state.cs.attributes |= 0x800;
    state
}

/// A state of long mode with another value in each register that has room for one.
fn patterned() -> VcpuState {
    let mut state = long_mode(0xffff_8000_0000_1000, 0x2000, 0x3000);
    let mut value = 0x0101_0101_0101_0101;
    for register in [
        &mut state.rax,
        &mut state.rcx,
        &mut state.rdx,
        &mut state.rbx,
        &mut state.rsp,
        &mut state.rbp,
        &mut state.rsi,
        &mut state.rdi,
        &mut state.r8,
        &mut state.r9,
        &mut state.r10,
        &mut state.r11,
        &mut state.r12,
        &mut state.r13,
        &mut state.r14,
        &mut state.r15,
        &mut state.cr2,
    ] {
        *register = value;
        value += 0x0101_0101_0101_0101;
    }
    // CF, PF, DF and ID, besides the bit that is always set.
    state.rflags = 0x20_0407;
    state.fs.base = 0x7fff_0000_1000;
    state.gs.base = 0xffff_8000_0000_2000;
    state.gdtr = Segment {
        limit: 0x1f,
        base: 0xffff_8000_0000_3000,
        ..state.gdtr
    };
    state.idtr = Segment {
        limit: 0xfff,
        base: 0xffff_8000_0000_4000,
        ..state.idtr
    };
    state.dr = [0x1000, 0x2000, 0x3000, 0xffff_8000_0000_5000];
    // DR0's local breakpoint, and B0.
    state.dr7 = 0x401;
    state.dr6 = 0xffff_0ff1;
    state.pat = 0x0007_0406_0006_0107;
    state.star = 0x0023_0010_1111_1111;
    state.lstar = 0xffff_8000_0000_6000;
    state.cstar = 0xffff_8000_0000_7000;
    state.sfmask = 0x4_7700;
    state.kernel_gs_base = 0xffff_8000_0000_8000;
    state.sysenter_cs = 0x10;
    state.sysenter_esp = 0xffff_8000_0000_9000;
    state.sysenter_eip = 0xffff_8000_0000_a000;
    // SCE, besides what long mode needs.
    state.efer |= 1;
    if cpu::cpuid(0x8000_0001, 0).edx & 1 << 27 != 0 {
        state.tsc_aux = 0x1234_5678;
    }
    state
}

fn state_round_trip() -> Outcome {
    let domain = Temporary::new(&config(b"state"))?;
    let vcpu = domain.create_vcpu().must("create").map(Owned)?;
    for expected in [
        patterned(),
        long_mode(ENTRY, STACK, 0),
        VcpuState::RESET,
        real_mode(ENTRY),
        patterned(),
    ] {
        vcpu.set_state(&expected).must("set state")?;
        same(&vcpu.state().must("state")?, &expected)?;
    }
    Ok(())
}

fn state_of_real_mode() -> Outcome {
    // 16-bit code: a call of END with status 5.
    let child = Child::new(&Plan::new(snippet!(
        ".code16",
        "mov eax, 4",
        "mov edi, 5",
        "mov cx, 0x1000",
        "call cx",
        ".code64"
    )))?;
    child
        .vcpu(0)
        .set_state(&real_mode(ENTRY))
        .must("set state")?;
    child.start()?;
    child.ends_with(5)
}

/// A spinner whose registers are known.
fn spinner() -> Result<(Child, VcpuState), Why> {
    let child = Child::new(&Plan::new(spin()))?;
    child.set(0, |state| {
        state.rax = 0x1111_2222_3333_4444;
        state.r8 = u64::MAX;
        state.r15 = 0x5555;
        state.cr2 = 0x6666;
        state.gs.base = 0x7777_0000;
        state.lstar = 0xffff_8000_0000_0000;
    })?;
    let state = child.state(0)?;
    Ok((child, state))
}

fn state_where_it_was_paused() -> Outcome {
    let (child, before) = spinner()?;
    child.start()?;
    until("time to run", || {
        Ok(child.vcpu(0).info().must("info")?.run_ns > 0)
    })?;
    child.domain.pause().must("pause")?;
    let after = child.state(0)?;
    // RF may be set by an interrupt that came between two instructions.
    same(
        &VcpuState {
            rflags: after.rflags & !(1 << 16),
            ..after
        },
        &before,
    )
}

fn state_changed_while_paused() -> Outcome {
    let child = Child::new(&Plan::new(snippet!("2: mov [0x2000], rbx", "jmp 2b")))?;
    child.set(0, |state| state.rbx = 1)?;
    child.start()?;
    child.until_word(DATA, 1)?;
    child.domain.pause().must("pause")?;
    child.set(0, |state| state.rbx = 2)?;
    check!(child.is(DomainState::PAUSED)?, "not PAUSED");
    child.domain.resume().must("resume")?;
    child.until_word(DATA, 2)
}

fn state_after_the_end() -> Outcome {
    let child = Child::new(&Plan::new(snippet!(
        "mov rbx, 0x1234",
        "mov qword ptr [0x100000], rbx"
    )))?;
    child.set(0, |state| state.r12 = 77)?;
    child.start()?;
    until("its end", || child.is(DomainState::ENDED))?;
    let state = child.state(0)?;
    check_eq!(state.rbx, 0x1234, "RBX");
    check_eq!(state.r12, 77, "R12");
    Ok(())
}

fn state_bad_part() -> Outcome {
    let child = Child::new(&Plan::new(spin()))?;
    let vcpu = raw(child.vcpu(0).any());
    for call in [Call::VCPU_GET_STATE, Call::VCPU_SET_STATE] {
        for part in [2, 1 << 32, 1 << 63, u64::MAX] {
            refuses(
                call,
                [vcpu, part, AREA.address(), AREA_SIZE],
                Status::BAD_ARGUMENT,
            )?;
        }
    }
    Ok(())
}

const REGISTERS: u64 = size_of::<VcpuState>() as u64;

fn state_bad_length() -> Outcome {
    let child = Child::new(&Plan::new(spin()))?;
    let vcpu = raw(child.vcpu(0).any());
    let vector = vector_length(child.vcpu(0))?;
    for (part, size) in [(part::REGISTERS, REGISTERS), (part::VECTOR, vector)] {
        for length in [0, 1, size - 1] {
            for call in [Call::VCPU_GET_STATE, Call::VCPU_SET_STATE] {
                refuses(
                    call,
                    [vcpu, part, AREA.address(), length],
                    Status::BAD_ARGUMENT,
                )?;
            }
        }
        for length in [size + 1, 1 << 32, u64::MAX] {
            refuses(
                Call::VCPU_SET_STATE,
                [vcpu, part, AREA.address(), length],
                Status::BAD_ARGUMENT,
            )?;
        }
        // What is read may be shorter than its buffer.
        let value = answers(
            Call::VCPU_GET_STATE,
            [vcpu, part, AREA.address(), size + 1],
            Status::OK,
        )?;
        check_eq!(value, size, "bytes of the part");
    }
    Ok(())
}

/// States in which no CPU can be, each with its rule.
fn impossible() -> [(&'static str, VcpuState); 16] {
    let long = VcpuState::long_mode(ENTRY, STACK, 0);
    let real = VcpuState::RESET;
    [
        (
            "PG without PE",
            VcpuState {
                cr0: 0xe000_0010,
                ..real
            },
        ),
        (
            "NW without CD",
            VcpuState {
                cr0: 0x2000_0010,
                ..real
            },
        ),
        (
            "CR0 above 32 bits",
            VcpuState {
                cr0: long.cr0 | 1 << 32,
                ..long
            },
        ),
        (
            "CR4 bit 63",
            VcpuState {
                cr4: long.cr4 | 1 << 63,
                ..long
            },
        ),
        (
            "CR4.VMXE",
            VcpuState {
                cr4: long.cr4 | 1 << 13,
                ..long
            },
        ),
        (
            "long mode without PAE",
            VcpuState {
                cr4: long.cr4 & !0x20,
                ..long
            },
        ),
        (
            "CR3 bit 63",
            VcpuState {
                cr3: 1 << 63,
                ..long
            },
        ),
        (
            "EFER bit 63",
            VcpuState {
                efer: long.efer | 1 << 63,
                ..long
            },
        ),
        (
            "EFER.SVME",
            VcpuState {
                efer: long.efer | 1 << 12,
                ..long
            },
        ),
        (
            "LME and PG without LMA",
            VcpuState {
                efer: 0x100,
                ..long
            },
        ),
        (
            "LMA without PG",
            VcpuState {
                efer: 0x500,
                ..real
            },
        ),
        ("XCR0 without x87", VcpuState { xcr0: 0, ..long }),
        (
            "XCR0 bit 62",
            VcpuState {
                xcr0: 1 | 1 << 62,
                ..long
            },
        ),
        ("PAT type 2", VcpuState { pat: 2, ..long }),
        (
            "DR6 above 32 bits",
            VcpuState {
                dr6: long.dr6 | 1 << 32,
                ..long
            },
        ),
        (
            "DR7 above 32 bits",
            VcpuState {
                dr7: long.dr7 | 1 << 32,
                ..long
            },
        ),
    ]
}

fn state_impossible() -> Outcome {
    let domain = Temporary::new(&config(b"bad"))?;
    let vcpu = domain.create_vcpu().must("create").map(Owned)?;
    for (what, state) in impossible() {
        refused(vcpu.set_state(&state), Status::BAD_ARGUMENT, what)?;
    }
    Ok(())
}

fn state_refused_changes_nothing() -> Outcome {
    let domain = Temporary::new(&config(b"bad"))?;
    let vcpu = domain.create_vcpu().must("create").map(Owned)?;
    let before = patterned();
    vcpu.set_state(&before).must("set state")?;
    for (what, state) in impossible() {
        refused(vcpu.set_state(&state), Status::BAD_ARGUMENT, what)?;
        same(&vcpu.state().must("state")?, &before)?;
    }
    Ok(())
}

/// A running domain reads or sets no state, its own neither.
fn state_of_itself() -> Outcome {
    let own = own_vcpu()?;
    refused(own.state(), Status::WRONG_STATE, "get state")?;
    refused(
        own.set_state(&VcpuState::RESET),
        Status::WRONG_STATE,
        "set state",
    )
}

/// Room for every vector state that there is: AVX-512 takes 2.7 KiB, AMX 8 KiB more.
const AREA_SIZE: u64 = 16 << 10;
static AREA: Scratch<{ AREA_SIZE as usize }> = Scratch::new();

/// Copies the vector state into [`AREA`]; its length.
fn vector_length(vcpu: Vcpu) -> Result<u64, Why> {
    let arguments = [raw(vcpu.any()), part::VECTOR, AREA.address(), AREA_SIZE];
    match crate::kit::to_the_end(Call::VCPU_GET_STATE, arguments) {
        (Status::OK, length) => Ok(length),
        (status, _) => Err(format_args!("get vector state: {status:?}").into()),
    }
}

/// Sets the vector state from [`AREA`].
fn set_vector(vcpu: Vcpu, length: u64) -> Status {
    let arguments = [raw(vcpu.any()), part::VECTOR, AREA.address(), length];
    crate::kit::to_the_end(Call::VCPU_SET_STATE, arguments).0
}

/// Offsets in the area (SDM vol. 1 tables 10-2 and 13-1).
const MXCSR: usize = 24;
const XMM0: usize = 160;
const XSTATE_BV: usize = 512;
const XCOMP_BV: usize = 520;

fn has_xsave() -> bool {
    cpu::cpuid(1, 0).ecx & 1 << 26 != 0
}

/// Marks x87 and SSE as being in the area.
fn mark_legacy() {
    if has_xsave() {
        AREA.set_u64(XSTATE_BV, AREA.get_u64(XSTATE_BV) | 3);
    }
}

fn vector_round_trip() -> Outcome {
    let child = Child::new(&Plan::new(spin()))?;
    let vcpu = child.vcpu(0);
    let length = vector_length(vcpu)?;
    let expected = if has_xsave() {
        cpu::cpuid(0xd, 0).ecx.into()
    } else {
        512
    };
    check_eq!(length, expected, "length");
    check_eq!(AREA.get_u64(MXCSR) & 0xffff, 0x1f80, "MXCSR after reset");
    for offset in 0..256 {
        AREA.set(XMM0 + offset, (offset * 3) as u8 ^ 0x5a);
    }
    mark_legacy();
    let status = set_vector(vcpu, length);
    check!(status == Status::OK, "set vector state: {status:?}");
    AREA.fill(0);
    check_eq!(vector_length(vcpu)?, length, "length");
    for offset in 0..256 {
        check_eq!(
            AREA.get(XMM0 + offset),
            (offset * 3) as u8 ^ 0x5a,
            "a byte of XMM"
        );
    }
    Ok(())
}

fn vector_is_loaded() -> Outcome {
    let child = Child::new(&Plan::new(snippet!(
        "mov rbx, 0x2000",
        "movups [rbx], xmm0",
        "movups [rbx + 16], xmm15",
        "xor edi, edi",
        "mov eax, 4",
        "call r15"
    )))?;
    let length = vector_length(child.vcpu(0))?;
    AREA.set_u64(XMM0, 0x1234_5678_9abc_def0);
    AREA.set_u64(XMM0 + 15 * 16 + 8, 0xfedc_ba98_7654_3210);
    mark_legacy();
    let status = set_vector(child.vcpu(0), length);
    check!(status == Status::OK, "set vector state: {status:?}");
    child.start()?;
    child.ends_with(0)?;
    check_eq!(child.word(DATA)?, 0x1234_5678_9abc_def0, "XMM0");
    check_eq!(child.word(DATA + 24)?, 0xfedc_ba98_7654_3210, "XMM15");
    Ok(())
}

fn vector_is_stored() -> Outcome {
    let child = Child::new(&Plan::new(snippet!(
        "mov rbx, 0x2000",
        "movups xmm3, [rbx]",
        "mov qword ptr [rbx + 64], 1",
        "2: jmp 2b"
    )))?;
    child.set_word(DATA, 0x0123_4567_89ab_cdef)?;
    child.start()?;
    child.until_word(DATA + 64, 1)?;
    child.domain.pause().must("pause")?;
    vector_length(child.vcpu(0))?;
    check_eq!(
        AREA.get_u64(XMM0 + 3 * 16),
        0x0123_4567_89ab_cdef,
        "XMM3 in the area"
    );
    Ok(())
}

fn vector_impossible() -> Outcome {
    let child = Child::new(&Plan::new(spin()))?;
    let vcpu = child.vcpu(0);
    let length = vector_length(vcpu)?;
    mark_legacy();
    let mxcsr = AREA.get_u64(MXCSR);
    AREA.set_u64(MXCSR, mxcsr | 1 << 31);
    check!(
        set_vector(vcpu, length) == Status::BAD_ARGUMENT,
        "a reserved bit of MXCSR"
    );
    AREA.set_u64(MXCSR, mxcsr);
    if has_xsave() {
        let present = AREA.get_u64(XSTATE_BV);
        AREA.set_u64(XSTATE_BV, present | 1 << 62);
        check!(
            set_vector(vcpu, length) == Status::BAD_ARGUMENT,
            "a component that there is not"
        );
        AREA.set_u64(XSTATE_BV, present);
        AREA.set_u64(XCOMP_BV, 1 << 63 | 3);
        check!(
            set_vector(vcpu, length) == Status::BAD_ARGUMENT,
            "the compacted format"
        );
        AREA.set_u64(XCOMP_BV, 0);
    }
    let status = set_vector(vcpu, length);
    check!(status == Status::OK, "the good state again: {status:?}");
    Ok(())
}

fn schedule() -> Outcome {
    let child = Child::new(&Plan::new(spin()))?;
    for wanted in [
        Schedule {
            weight: Schedule::MIN_WEIGHT,
            ..Schedule::USUAL
        },
        Schedule {
            weight: Schedule::MAX_WEIGHT,
            cap: 100,
            ..Schedule::USUAL
        },
        Schedule {
            cap: 1,
            cpu: 0,
            ..Schedule::USUAL
        },
        Schedule::USUAL,
    ] {
        child.vcpu(0).schedule(&wanted).must("schedule")?;
        let seen = child.vcpu(0).info().must("info")?.schedule;
        check!(seen == wanted, "{seen:?}, expected {wanted:?}");
    }
    Ok(())
}

fn schedule_bad_values() -> Outcome {
    let child = Child::new(&Plan::new(spin()))?;
    let cpus = system().info().must("system info")?.cpus;
    let usual = Schedule::USUAL;
    let refused = |schedule: Schedule| {
        refused(
            child.vcpu(0).schedule(&schedule),
            Status::BAD_ARGUMENT,
            "schedule",
        )
    };
    for weight in [
        0,
        Schedule::MIN_WEIGHT - 1,
        Schedule::MAX_WEIGHT + 1,
        u32::MAX,
    ] {
        refused(Schedule { weight, ..usual })?;
    }
    for cap in [101, u32::MAX] {
        refused(Schedule { cap, ..usual })?;
    }
    for cpu in [cpus, cpus + 1, u32::MAX - 1] {
        refused(Schedule { cpu, ..usual })?;
    }
    for reserved in [1, u32::MAX] {
        refused(Schedule { reserved, ..usual })?;
    }
    let seen = child.vcpu(0).info().must("info")?.schedule;
    check!(seen == usual, "{seen:?}");
    Ok(())
}

fn pinned(cpu: u32) -> Schedule {
    Schedule {
        cpu,
        ..Schedule::USUAL
    }
}

fn schedule_pins() -> Outcome {
    for cpu in 0..system().info().must("system info")?.cpus {
        let child = Child::new(&Plan::new(count()))?;
        child.vcpu(0).schedule(&pinned(cpu)).must("schedule")?;
        child.start()?;
        for _ in 0..3 {
            child.until_change(DATA)?;
            check_eq!(child.vcpu(0).info().must("info")?.cpu, cpu, "CPU");
        }
        check_eq!(
            child.vcpu(0).info().must("info")?.migrations,
            0,
            "migrations"
        );
    }
    Ok(())
}

fn schedule_moves() -> Outcome {
    let cpus = system().info().must("system info")?.cpus;
    let child = Child::running(count())?;
    for round in 0..20 {
        let cpu = round % cpus;
        child.vcpu(0).schedule(&pinned(cpu)).must("schedule")?;
        until("its move", || {
            Ok(child.vcpu(0).info().must("info")?.cpu == cpu)
        })?;
        child.until_change(DATA)?;
    }
    Ok(())
}

/// Two spinners on one CPU, roughly: the guest `measure` is exact about it.
fn schedule_weight_counts() -> Outcome {
    let [heavy, light] = [
        Child::new(&Plan::new(spin()))?,
        Child::new(&Plan::new(spin()))?,
    ];
    for (child, weight) in [(&heavy, 4096), (&light, 16)] {
        let schedule = Schedule {
            weight,
            ..pinned(0)
        };
        child.vcpu(0).schedule(&schedule).must("schedule")?;
    }
    heavy.start()?;
    light.start()?;
    sleep(200 * MS);
    let ran = |child: &Child| Ok::<_, Why>(child.vcpu(0).info().must("info")?.run_ns);
    let (heavy, light) = (ran(&heavy)?, ran(&light)?);
    check!(heavy > 4 * light, "{heavy} ns and {light} ns");
    Ok(())
}

fn schedule_cap_counts() -> Outcome {
    let child = Child::new(&Plan::new(spin()))?;
    let schedule = Schedule {
        cap: 10,
        ..Schedule::USUAL
    };
    child.vcpu(0).schedule(&schedule).must("schedule")?;
    child.start()?;
    let start = hypercall::clock();
    sleep(300 * MS);
    let info = child.vcpu(0).info().must("info")?;
    let age = hypercall::clock() - start;
    check!(
        info.run_ns < age / 4 && info.run_ns > 0,
        "{} of {age} ns",
        info.run_ns
    );
    check!(info.capped_ns > age / 2, "{} ns capped", info.capped_ns);
    Ok(())
}

fn info() -> Outcome {
    let child = Child::new(&Plan {
        vcpus: 2,
        ..Plan::new(spin())
    })?;
    child.start()?;
    for index in 0..2 {
        until("time to run", || {
            Ok(child.vcpu(index).info().must("info")?.run_ns > 0)
        })?;
        let info = child.vcpu(index).info().must("info")?;
        check_eq!(info.index as usize, index, "index");
        check_eq!(info.reserved, 0, "reserved");
        check!(info.switches > 0, "it took no CPU");
    }
    Ok(())
}

fn info_states() -> Outcome {
    let run = |child: &Child| Ok::<_, Why>(child.vcpu(0).info().must("info")?.run);
    let child = Child::new(&Plan::new(spin()))?;
    check!(run(&child)? == VcpuRun::HELD, "before the start");
    child.start()?;
    check!(
        [VcpuRun::RUNNING, VcpuRun::READY].contains(&run(&child)?),
        "after the start"
    );
    child.domain.pause().must("pause")?;
    child.state(0)?;
    check!(run(&child)? == VcpuRun::HELD, "paused");
    child.domain.kill().must("kill")?;
    child.state(0)?;
    check!(run(&child)? == VcpuRun::ENDED, "ended");
    let waiter = Child::running(wait())?;
    until("its wait", || Ok(run(&waiter)? == VcpuRun::BLOCKED))?;
    let capped = Child::new(&Plan::new(spin()))?;
    let schedule = Schedule {
        cap: 1,
        ..Schedule::USUAL
    };
    capped.vcpu(0).schedule(&schedule).must("schedule")?;
    capped.start()?;
    until("its cap", || Ok(run(&capped)? == VcpuRun::CAPPED))
}

fn age(info: &VcpuInfo) -> u64 {
    info.run_ns + info.ready_ns + info.blocked_ns + info.held_ns + info.capped_ns
}

fn info_times_are_its_age() -> Outcome {
    for code in [spin(), wait()] {
        let child = Child::running(code)?;
        let outer = hypercall::clock();
        let first = child.vcpu(0).info().must("info")?;
        let inner = hypercall::clock();
        sleep(5 * MS);
        let inner = hypercall::clock() - inner;
        let second = child.vcpu(0).info().must("info")?;
        let outer = hypercall::clock() - outer;
        let passed = age(&second) - age(&first);
        // Times are kept in ticks; each of the five may be rounded.
        check!(
            (inner..=outer).contains(&(passed + 10)) || (inner..=outer).contains(&passed),
            "aged {passed} ns, not {inner} to {outer}"
        );
        check_eq!(
            second.steal_ns,
            second.ready_ns + second.capped_ns,
            "steal time"
        );
    }
    Ok(())
}

fn info_counts_exits() -> Outcome {
    let child = Child::new(&agents(1))?;
    child.load(0, &[Step::new(Call::VERSION, [])], 1000, After::End)?;
    child.start()?;
    child.ends_with(0)?;
    let info = child.vcpu(0).info().must("info")?;
    // The thousand, and the last.
    check_eq!(info.exits[1], 1001, "hypercalls");
    Ok(())
}

/// Enables interrupts, and waits for the handler of vector 33 to have run; then ends.
fn interruptible() -> plinth_rt::Snippet {
    snippet!(
        "sti",
        "2: cmp qword ptr [0x2f08], 0",
        "je 2b",
        "mov eax, 4",
        "xor edi, edi",
        "call r15"
    )
}

fn interrupt() -> Outcome {
    let child = Child::running(interruptible())?;
    sleep(MS);
    check!(child.is(DomainState::RUNNING)?, "ended before");
    child.vcpu(0).interrupt(33).must("interrupt")?;
    child.ends_with(0)?;
    check_eq!(child.word(COUNTERS)?, 0, "vector 32");
    check_eq!(child.word(COUNTERS + 8)?, 1, "vector 33");
    check_eq!(child.word(COUNTERS + 16)?, 0, "vector 34");
    Ok(())
}

fn interrupt_of_itself() -> Outcome {
    let own = own_vcpu()?;
    for vector in [32, 0x77, 0xf0] {
        own.interrupt(vector).must("interrupt")?;
        let seen = taken();
        check!(
            seen == Some(vector),
            "vector {seen:x?}, expected {vector:#x}"
        );
        // And once only.
        check!(taken().is_none(), "again");
    }
    Ok(())
}

fn interrupt_waits_for_sti() -> Outcome {
    let child = Child::new(&Plan::new(snippet!(
        "2: mov rbx, [0x2f08]",
        "mov [0x2000], rbx",
        "inc qword ptr [0x2010]",
        "cmp qword ptr [0x2008], 0",
        "je 2b",
        "sti",
        "3: cmp qword ptr [0x2f08], 0",
        "je 3b",
        "mov eax, 4",
        "xor edi, edi",
        "call r15"
    )))?;
    child.vcpu(0).interrupt(33).must("interrupt")?;
    child.start()?;
    for _ in 0..3 {
        child.until_change(DATA + 16)?;
    }
    check_eq!(child.word(COUNTERS + 8)?, 0, "interrupts before STI");
    child.set_word(DATA + 8, 1)?;
    child.ends_with(0)?;
    check_eq!(child.word(COUNTERS + 8)?, 1, "interrupts");
    check_eq!(child.word(DATA)?, 0, "interrupts that it saw before STI");
    Ok(())
}

fn interrupt_while_paused() -> Outcome {
    let child = Child::running(interruptible())?;
    child.domain.pause().must("pause")?;
    child.state(0)?;
    child.vcpu(0).interrupt(33).must("interrupt")?;
    sleep(MS);
    check_eq!(child.word(COUNTERS + 8)?, 0, "interrupts while paused");
    child.domain.resume().must("resume")?;
    child.ends_with(0)
}

/// The vector of the interrupt that the suite gets when it enables them for a moment; `None` if there is none.
fn taken() -> Option<u8> {
    let result = snippet!("sti", "nop", "nop", "cli").run(Gprs::ZERO);
    result.err().map(|trap| trap.vector)
}

fn interrupt_highest_first() -> Outcome {
    let own = own_vcpu()?;
    let vectors = [0x31, 0xfd, 0x30, 0x90, 0x8f];
    for vector in vectors {
        own.interrupt(vector).must("interrupt")?;
    }
    // Once more makes no second of it.
    own.interrupt(vectors[0]).must("interrupt")?;
    for expected in [0xfd, 0x90, 0x8f, 0x31, 0x30] {
        let seen = taken();
        check!(
            seen == Some(expected),
            "vector {seen:x?}, expected {expected:#x}"
        );
    }
    check!(taken().is_none(), "one more");
    Ok(())
}

fn interrupt_whatever_cr8_says() -> Outcome {
    let own = own_vcpu()?;
    cpu::set_cr8(15)?;
    own.interrupt(0x20).must("interrupt")?;
    let seen = taken();
    cpu::set_cr8(0)?;
    check!(seen == Some(0x20), "vector {seen:x?}");
    Ok(())
}

fn interrupt_bad_vector() -> Outcome {
    let child = Child::new(&Plan::new(spin()))?;
    let vcpu = raw(child.vcpu(0).any());
    for vector in [0, 2, 8, 31, 256, 1 << 32, u64::MAX] {
        refuses(Call::VCPU_INTERRUPT, [vcpu, vector], Status::BAD_ARGUMENT)?;
    }
    Ok(())
}
