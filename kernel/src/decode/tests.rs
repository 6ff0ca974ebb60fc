//! The decoder against the manuals' examples, and against `iced-x86` over systematic and random encodings.
//!
//! What iced takes for an instruction must have the same length here, and the known set the same meaning. What iced
//! refuses may have a length here (see `length`), and must not panic.
//!
//! Known differences, each left out by name below:
//! - MOV to and from DR8 to DR15 is an instruction for iced; CPUs raise #UD, and so does `decode`.
//! - iced refuses MOV CR with LOCK unless asked for AMD's; here it is CR8 (tested by hand).

use iced_x86::{Code, Decoder, DecoderOptions, Mnemonic, OpKind};

use super::*;

/// Bits of iced for a mode.
fn bits(mode: Mode) -> u32 {
    match mode {
        Mode::Real16 => 16,
        Mode::Protected32 => 32,
        Mode::Long64 => 64,
    }
}

const MODES: [Mode; 3] = [Mode::Real16, Mode::Protected32, Mode::Long64];
const RIP: u64 = 0x1234_5678;

/// A register's value for address computations, different in every byte.
fn gpr(number: u8) -> u64 {
    (u64::from(number) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn segment_base(segment: Segment) -> u64 {
    0x1000_0000 * (segment as u64 + 3)
}

fn iced_value(register: iced_x86::Register, long: bool) -> u64 {
    use iced_x86::Register as R;
    if register.is_segment_register() {
        let number = register.number();
        return if long && number < 4 {
            0
        } else {
            0x1000_0000 * (number as u64 + 3)
        };
    }
    assert!(register != R::None);
    gpr(register.full_register().number() as u8) & operand::mask(register.size() as u8)
}

/// Whether `ours` is what iced says operand `index` is.
fn same(
    iced: &iced_x86::Instruction,
    index: u32,
    ours: &Operand,
    next: u64,
    long: bool,
    size: u8,
) -> bool {
    match (iced.op_kind(index), ours) {
        (OpKind::Register, Operand::Register(register)) => {
            same_register(iced.op_register(index), *register)
        }
        (
            OpKind::Immediate8
            | OpKind::Immediate16
            | OpKind::Immediate32
            | OpKind::Immediate64
            | OpKind::Immediate8to16
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64
            | OpKind::Immediate32to64,
            Operand::Immediate(value),
        ) => iced.immediate(index) & operand::mask(size) == *value,
        (OpKind::Register, _) => false,
        (_, Operand::Memory(memory)) => same_memory(iced, index, memory, next, long),
        _ => false,
    }
}

fn same_register(iced: iced_x86::Register, ours: Register) -> bool {
    use iced_x86::Register as R;
    let high = matches!(iced, R::AH | R::CH | R::DH | R::BH);
    iced.is_gpr()
        && iced.size() == usize::from(ours.size)
        && iced.full_register().number() == usize::from(ours.number)
        && high == ours.high
}

fn same_memory(
    iced: &iced_x86::Instruction,
    index: u32,
    ours: &Memory,
    next: u64,
    long: bool,
) -> bool {
    let expected = iced
        .virtual_address(index, 0, |register, _, _| Some(iced_value(register, long)))
        .expect("a memory operand");
    let expected = if long {
        expected
    } else {
        expected & 0xffff_ffff
    };
    ours.linear_address(&gpr, &segment_base, next) == expected
}

/// Checks one encoding; `bytes` holds at least 15.
pub fn check(bytes: &[u8], mode: Mode) {
    let ours = length(bytes, mode);
    let decoded = decode(bytes, mode);
    if let (Ok(length), Ok(decoded)) = (ours, &decoded) {
        assert_eq!(length, decoded.length);
    }
    let mut decoder = Decoder::with_ip(bits(mode), bytes, RIP, DecoderOptions::NONE);
    let iced = decoder.decode();
    if iced.is_invalid() {
        return;
    }
    assert_eq!(
        ours,
        Ok(iced.len() as u8),
        "{mode:?} {bytes:02x?}: {iced:?}"
    );
    check_meaning(bytes, mode, &iced, decoded);
}

/// Checks the meaning of what iced takes for `iced`.
fn check_meaning(
    bytes: &[u8],
    mode: Mode,
    iced: &iced_x86::Instruction,
    decoded: Result<Instruction, DecodeError>,
) {
    use Mnemonic as M;
    let context = || format!("{mode:?} {bytes:02x?}: {:?} {decoded:x?}", iced.code());
    if matches!(iced.code(), Code::Mov_dr_r64 | Code::Mov_r64_dr) && dr_number(iced) >= 8 {
        assert_eq!(decoded, Err(DecodeError::Invalid));
        return;
    }
    let instruction = decoded.unwrap_or_else(|error| panic!("{error:?} {}", context()));
    let long = mode == Mode::Long64;
    let next = RIP + iced.len() as u64;
    let size = instruction.operand_size;
    let matches = |index: u32, ours: &Operand| same(iced, index, ours, next, long, size);
    let pair = |first: &Operand, second: &Operand| matches(0, first) && matches(1, second);
    let sized = |memory: bool| !memory || iced.memory_size().size() == usize::from(size);
    let register = |register: Register| Operand::Register(register);
    let operation = instruction.operation;
    let arithmetic = |expected: Alu| {
        matches!(operation, Operation::Arithmetic { kind, destination, source }
            if kind == expected && pair(&destination, &source) && sized(instruction.memory.is_some()))
    };
    let bit = |expected: BitOperation| match operation {
        Operation::Bit { kind, base, index } => {
            let index_right = match index {
                // iced gives the immediate as it stands.
                Operand::Immediate(value) => iced.immediate(1) & (u64::from(size) * 8 - 1) == value,
                _ => matches(1, &index),
            };
            kind == expected
                && matches(0, &base)
                && index_right
                && sized(instruction.memory.is_some())
        }
        _ => false,
    };
    let string = |expected: StringKind| match operation {
        Operation::String {
            kind,
            source,
            destination,
        } => {
            let at = |memory: Option<Memory>, is: &dyn Fn(OpKind) -> bool| {
                let index = (0..iced.op_count()).find(|&index| is(iced.op_kind(index)));
                match (memory, index) {
                    (Some(memory), Some(index)) => same_memory(iced, index, &memory, next, long),
                    (None, None) => true,
                    _ => false,
                }
            };
            use OpKind as K;
            kind == expected
                && at(source, &|k| {
                    matches!(k, K::MemorySegSI | K::MemorySegESI | K::MemorySegRSI)
                })
                && at(destination, &|k| {
                    matches!(k, K::MemoryESDI | K::MemoryESEDI | K::MemoryESRDI)
                })
                && iced.memory_size().size() == usize::from(size)
        }
        _ => false,
    };
    let extend = |expected: bool| {
        matches!(operation, Operation::Extend { destination, source, signed }
            if signed == expected && pair(&register(destination), &source) && sized(instruction.memory.is_some()))
    };
    let port = |ours: Port, index: u32| match ours {
        Port::Immediate(value) => {
            iced.op_kind(index) == OpKind::Immediate8 && iced.immediate8() == value
        }
        Port::Dx => iced.op_register(index) == iced_x86::Register::DX,
    };
    let special = |register: iced_x86::Register| register.is_cr() || register.is_dr();
    let right = match iced.mnemonic() {
        M::Mov if special(iced.op0_register()) => match operation {
            Operation::WriteControl {
                control,
                register: r,
            } => {
                iced.op0_register().is_cr()
                    && iced.op0_register().number() == usize::from(control)
                    && same_register(iced.op1_register(), r)
            }
            Operation::WriteDebug { debug, register: r } => {
                iced.op0_register().is_dr()
                    && iced.op0_register().number() == usize::from(debug)
                    && same_register(iced.op1_register(), r)
            }
            _ => false,
        },
        M::Mov if special(iced.op1_register()) => match operation {
            Operation::ReadControl {
                control,
                register: r,
            } => {
                iced.op1_register().is_cr()
                    && iced.op1_register().number() == usize::from(control)
                    && same_register(iced.op0_register(), r)
            }
            Operation::ReadDebug { debug, register: r } => {
                iced.op1_register().is_dr()
                    && iced.op1_register().number() == usize::from(debug)
                    && same_register(iced.op0_register(), r)
            }
            _ => false,
        },
        // Segment registers are loaded from and stored to ordinary memory only.
        M::Mov
            if iced.op0_register().is_segment_register()
                || iced.op1_register().is_segment_register() =>
        {
            operation == Operation::Other
        }
        M::Mov | M::Movnti => matches!(operation, Operation::Move { destination, source }
            if pair(&destination, &source) && sized(instruction.memory.is_some())),
        M::Movzx => extend(false),
        M::Movsx | M::Movsxd => extend(true),
        M::Xchg
            if bytes_of(iced, bytes)
                .iter()
                .any(|byte| matches!(byte, 0x86 | 0x87)) =>
        {
            matches!(operation, Operation::Exchange { operand, register: r }
                if (pair(&operand, &register(r)) || (matches(1, &operand) && matches(0, &register(r))))
                    && sized(instruction.memory.is_some()))
                // 90+r has only registers.
                || (operation == Operation::Other && iced.op0_kind() == iced.op1_kind())
        }
        M::Add => arithmetic(Alu::Add),
        M::Or => arithmetic(Alu::Or),
        M::Adc => arithmetic(Alu::Adc),
        M::Sbb => arithmetic(Alu::Sbb),
        M::And => arithmetic(Alu::And),
        M::Sub => arithmetic(Alu::Sub),
        M::Xor => arithmetic(Alu::Xor),
        M::Cmp => arithmetic(Alu::Cmp),
        M::Test => matches!(operation, Operation::Test { first, second }
            if pair(&first, &second) && sized(instruction.memory.is_some())),
        M::Bt => bit(BitOperation::Bt),
        M::Bts => bit(BitOperation::Bts),
        M::Btr => bit(BitOperation::Btr),
        M::Btc => bit(BitOperation::Btc),
        M::Movsb | M::Movsw | M::Movsq => string(StringKind::Movs),
        M::Movsd if iced.is_string_instruction() => string(StringKind::Movs),
        M::Cmpsb | M::Cmpsw | M::Cmpsq => string(StringKind::Cmps),
        M::Cmpsd if iced.is_string_instruction() => string(StringKind::Cmps),
        M::Stosb | M::Stosw | M::Stosd | M::Stosq => string(StringKind::Stos),
        M::Lodsb | M::Lodsw | M::Lodsd | M::Lodsq => string(StringKind::Lods),
        M::Scasb | M::Scasw | M::Scasd | M::Scasq => string(StringKind::Scas),
        M::Insb | M::Insw | M::Insd => string(StringKind::Ins),
        M::Outsb | M::Outsw | M::Outsd => string(StringKind::Outs),
        M::In => {
            matches!(operation, Operation::In(ours) if port(ours, 1) && iced.op0_register().size() == usize::from(size))
        }
        M::Out => {
            matches!(operation, Operation::Out(ours) if port(ours, 0) && iced.op1_register().size() == usize::from(size))
        }
        M::Clts => operation == Operation::Clts,
        M::Lmsw => match operation {
            Operation::Lmsw(Operand::Register(r)) => {
                // iced gives the register the operand size; 16 bits of it are read.
                r.size == 2 && iced.op0_register().full_register().number() == usize::from(r.number)
            }
            Operation::Lmsw(operand) => matches(0, &operand) && size == 2,
            _ => false,
        },
        M::Smsw => matches!(operation, Operation::Smsw(operand) if matches(0, &operand)),
        M::Invlpg => {
            matches!(operation, Operation::Invlpg(memory) if same_memory(iced, 0, &memory, next, long))
        }
        M::Invpcid => {
            matches!(operation, Operation::Invpcid(memory) if same_memory(iced, 1, &memory, next, long))
        }
        M::Cpuid => operation == Operation::Cpuid,
        M::Rdmsr => operation == Operation::Rdmsr,
        M::Wrmsr => operation == Operation::Wrmsr,
        M::Hlt => operation == Operation::Hlt,
        M::Pause => operation == Operation::Pause,
        M::Vmcall => operation == Operation::Vmcall,
        M::Vmmcall => operation == Operation::Vmmcall,
        M::Xgetbv => operation == Operation::Xgetbv,
        M::Xsetbv => operation == Operation::Xsetbv,
        M::Invd => operation == Operation::Invd,
        M::Wbinvd | M::Wbnoinvd => operation == Operation::Wbinvd,
        M::Rdpmc => operation == Operation::Rdpmc,
        M::Rdtsc => operation == Operation::Rdtsc,
        M::Rdtscp => operation == Operation::Rdtscp,
        M::Monitor | M::Monitorx => operation == Operation::Monitor,
        M::Mwait | M::Mwaitx => operation == Operation::Mwait,
        M::Rsm => operation == Operation::Rsm,
        M::Getsec | M::Getsecq => operation == Operation::Getsec,
        M::Vmread
        | M::Vmwrite
        | M::Vmptrld
        | M::Vmptrst
        | M::Vmclear
        | M::Vmxon
        | M::Vmxoff
        | M::Vmlaunch
        | M::Vmresume
        | M::Vmfunc
        | M::Invept
        | M::Invvpid
        | M::Vmrun
        | M::Vmload
        | M::Vmsave
        | M::Stgi
        | M::Clgi
        | M::Skinit
        | M::Invlpga => operation == Operation::Virtualisation,
        _ => operation == Operation::Other,
    };
    assert!(right, "{}", context());
}

fn bytes_of<'a>(iced: &iced_x86::Instruction, bytes: &'a [u8]) -> &'a [u8] {
    &bytes[..iced.len()]
}

fn dr_number(iced: &iced_x86::Instruction) -> usize {
    [iced.op0_register(), iced.op1_register()]
        .into_iter()
        .find(|register| register.is_dr())
        .map_or(0, |register| register.number())
}

/// xorshift64*: good enough to spread over encodings, and the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 33) as usize % limit
    }
}

const PREFIXES: [u8; 18] = [
    0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x40, 0x41, 0x42, 0x44, 0x48,
    0x4f, 0x4c,
];

/// An encoding whose bytes are random, but prefixes and escapes as likely as opcodes.
fn random_encoding(random: &mut Random) -> [u8; 16] {
    let mut bytes = [0; 16];
    for half in bytes.chunks_exact_mut(8) {
        half.copy_from_slice(&random.next().to_le_bytes());
    }
    let prefixes = [0, 0, 1, 1, 2, 3][random.below(6)];
    for byte in &mut bytes[..prefixes] {
        *byte = PREFIXES[random.below(PREFIXES.len())];
    }
    let escape: &[u8] = match random.below(8) {
        0 | 1 => &[0x0f],
        2 => &[0x0f, 0x38],
        3 => &[0x0f, 0x3a],
        4 => [
            &[0xc4][..],
            &[0xc5],
            &[0x62],
            &[0x8f],
            &[0x0f, 0x01],
            &[0x0f, 0x0f],
        ][random.below(6)],
        _ => &[],
    };
    bytes[prefixes..prefixes + escape.len()].copy_from_slice(escape);
    bytes
}

/// Two million encodings in each run; PLINTH_DECODE_CASES asks for another number.
#[test]
fn random_encodings_agree_with_iced() {
    let cases = std::env::var("PLINTH_DECODE_CASES")
        .ok()
        .and_then(|cases| cases.parse().ok())
        .unwrap_or(2_000_000u64);
    let mut random = Random(0x0123_4567_89ab_cdef);
    for case in 0..cases {
        check(&random_encoding(&mut random), MODES[case as usize % 3]);
    }
}

/// Every opcode of the legacy maps, with every ModRM byte and the prefixes that may change its length.
#[test]
fn systematic_encodings_agree_with_iced() {
    let prefix_sets: [&[u8]; 13] = [
        &[],
        &[0x66],
        &[0x67],
        &[0xf2],
        &[0xf3],
        &[0xf0],
        &[0x48],
        &[0x66, 0x48],
        &[0x66, 0x67],
        &[0x66, 0xf2],
        &[0x65, 0x67],
        &[0x4f],
        &[0x48, 0x66],
    ];
    let maps: [&[u8]; 4] = [&[], &[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a]];
    for mode in MODES {
        for prefixes in prefix_sets {
            for map in maps {
                for opcode in 0..=255u8 {
                    for modrm in 0..=255u8 {
                        // The three-byte maps have one rule for all; a quarter of the ModRM bytes will do.
                        if map.len() == 2 && modrm & 3 != opcode & 3 {
                            continue;
                        }
                        let mut bytes = [0x25; 20];
                        let head = [prefixes, map, &[opcode, modrm]].concat();
                        bytes[..head.len()].copy_from_slice(&head);
                        check(&bytes, mode);
                    }
                }
            }
        }
    }
}

/// Every opcode of the VEX, EVEX and XOP maps.
#[test]
fn systematic_vector_encodings_agree_with_iced() {
    for mode in MODES {
        for opcode in 0..=255u8 {
            for modrm in [0x00, 0x04, 0x05, 0x0c, 0x44, 0x84, 0xc0, 0xc1, 0xf8, 0x1c] {
                for pp in 0..4u8 {
                    for w_l in [0x00, 0x04, 0x80, 0x84u8] {
                        for map in 0..32u8 {
                            let tail = [
                                opcode, modrm, 0x24, 0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0x11,
                            ];
                            let third = w_l | pp | 0x78;
                            for first in [0xc4, 0x8f] {
                                check(&[&[first, 0xe0 | map, third][..], &tail].concat(), mode);
                            }
                            if map < 16 {
                                let length = (w_l & 4) << 3;
                                check(
                                    &[&[0x62, 0xf0 | map, (w_l & 0x80) | 0x7c | pp, 8 | length][..], &tail].concat(),
                                    mode,
                                );
                            }
                        }
                        check(
                            &[
                                &[0xc5, 0xf8 | pp | (w_l & 4), opcode, modrm][..],
                                &[0x24; 11],
                            ]
                            .concat(),
                            mode,
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn every_truncation_is_told_and_more_bytes_never_change_a_length() {
    let mut random = Random(77);
    for case in 0..50_000 {
        let bytes = random_encoding(&mut random);
        let mode = MODES[case % 3];
        if let Ok(length) = length(&bytes, mode) {
            for short in 0..usize::from(length) {
                assert_eq!(
                    super::length(&bytes[..short], mode),
                    Err(DecodeError::Truncated),
                    "{bytes:02x?}"
                );
            }
            assert_eq!(
                super::length(&bytes[..usize::from(length)], mode),
                Ok(length)
            );
        }
    }
}

#[test]
fn sixteen_bytes_are_too_long_and_fifteen_are_not() {
    let mut bytes = [0x66; 32];
    assert_eq!(length(&bytes, Mode::Long64), Err(DecodeError::TooLong));
    bytes[14] = 0x90;
    assert_eq!(length(&bytes, Mode::Long64), Ok(15));
    assert_eq!(
        length(&bytes[..14], Mode::Long64),
        Err(DecodeError::Truncated)
    );
    bytes[14] = 0xb0;
    assert_eq!(length(&bytes, Mode::Long64), Err(DecodeError::TooLong));
    assert_eq!(length(&[], Mode::Long64), Err(DecodeError::Truncated));
}

#[test]
fn a_mov_to_cr_has_no_memory_form() {
    // MOV CR0, RAX with mod 0 and rm 4 has no SIB byte: the mod field is ignored.
    let instruction = decode(&[0x0f, 0x22, 0x04], Mode::Long64).expect("an instruction");
    assert_eq!(instruction.length, 3);
    assert!(matches!(
        instruction.operation,
        Operation::WriteControl {
            control: 0,
            register: Register {
                number: 4,
                size: 8,
                high: false
            }
        }
    ));
}

#[test]
fn cr8_by_rex_and_by_lock() {
    let control = |bytes: &[u8], mode| match decode(bytes, mode).map(|i| i.operation) {
        Ok(Operation::WriteControl { control, register }) => Some((control, register.number)),
        _ => None,
    };
    assert_eq!(
        control(&[0x44, 0x0f, 0x22, 0xc0], Mode::Long64),
        Some((8, 0))
    );
    assert_eq!(
        control(&[0xf0, 0x0f, 0x22, 0xc1], Mode::Protected32),
        Some((8, 1))
    );
    assert_eq!(
        control(&[0x0f, 0x22, 0xc8], Mode::Protected32),
        None,
        "there is no CR1"
    );
    assert_eq!(
        control(&[0xf0, 0x0f, 0x22, 0xd8], Mode::Protected32),
        None,
        "LOCK with CR3"
    );
}

#[test]
fn lock_is_only_for_read_modify_write() {
    assert!(
        decode(&[0xf0, 0x01, 0x00], Mode::Long64).is_ok(),
        "lock add [rax], eax"
    );
    assert_eq!(
        decode(&[0xf0, 0x01, 0xc0], Mode::Long64),
        Err(DecodeError::Invalid),
        "lock add eax, eax"
    );
    assert_eq!(
        decode(&[0xf0, 0x39, 0x00], Mode::Long64),
        Err(DecodeError::Invalid),
        "lock cmp [rax], eax"
    );
    assert_eq!(
        decode(&[0xf0, 0x89, 0x00], Mode::Long64),
        Err(DecodeError::Invalid),
        "lock mov [rax], eax"
    );
    assert_eq!(
        decode(&[0xf0, 0xf4], Mode::Long64),
        Err(DecodeError::Invalid),
        "lock hlt"
    );
}

#[test]
fn a_rex_prefix_before_another_prefix_is_ignored() {
    let instruction = decode(&[0x48, 0x66, 0x89, 0x00], Mode::Long64).expect("an instruction");
    assert_eq!((instruction.length, instruction.operand_size), (4, 2));
}

#[test]
fn in_64_bit_mode_only_fs_and_gs_override() {
    let segment = |bytes: &[u8], mode| {
        decode(bytes, mode)
            .ok()
            .and_then(|i| i.memory)
            .map(|m| m.segment)
    };
    assert_eq!(
        segment(&[0x64, 0x2e, 0x89, 0x00], Mode::Long64),
        Some(Segment::Fs)
    );
    assert_eq!(
        segment(&[0x64, 0x2e, 0x89, 0x00], Mode::Protected32),
        Some(Segment::Cs)
    );
    assert_eq!(
        segment(&[0x89, 0x45, 0x00], Mode::Protected32),
        Some(Segment::Ss)
    );
}

#[test]
fn high_byte_registers_end_with_rex() {
    let register = |bytes: &[u8]| match decode(bytes, Mode::Long64).map(|i| i.operation) {
        Ok(Operation::Move {
            source: Operand::Register(register),
            ..
        }) => register,
        other => panic!("{other:?}"),
    };
    assert_eq!(
        register(&[0x88, 0x20]),
        Register {
            number: 0,
            size: 1,
            high: true
        }
    );
    assert_eq!(
        register(&[0x40, 0x88, 0x20]),
        Register {
            number: 4,
            size: 1,
            high: false
        }
    );
}

#[test]
fn parts_of_registers_are_read_and_written_as_the_manual_says() {
    let whole = 0x1122_3344_5566_7788;
    let register = |size, high| Register {
        number: 0,
        size,
        high,
    };
    assert_eq!(register(1, true).read(whole), 0x77);
    assert_eq!(register(1, true).write(whole, 0x1ab), 0x1122_3344_5566_ab88);
    assert_eq!(
        register(1, false).write(whole, 0x1ab),
        0x1122_3344_5566_77ab
    );
    assert_eq!(
        register(2, false).write(whole, 0x1_abcd),
        0x1122_3344_5566_abcd
    );
    assert_eq!(register(4, false).write(whole, 0x1_dead_beef), 0xdead_beef);
    assert_eq!(register(8, false).write(whole, 5), 5);
    assert_eq!(register(4, false).read(whole), 0x5566_7788);
}

#[test]
fn addresses_wrap_where_their_size_ends() {
    let address = |bytes: &[u8], mode, rip| {
        decode(bytes, mode)
            .ok()
            .and_then(|i| i.linear_address(&|_| 0xffff_ffff_ffff_fff8, &|_| 0x10_0000, rip))
    };
    // mov [bx+0x10], ax: the offset wraps at 64 KiB, the segment's base is added to that.
    assert_eq!(
        address(&[0x89, 0x47, 0x10], Mode::Real16, 0),
        Some(0x10_0008)
    );
    assert_eq!(
        address(&[0x89, 0x40, 0x10], Mode::Protected32, 0),
        Some(0x10_0008)
    );
    assert_eq!(address(&[0x89, 0x40, 0x10], Mode::Long64, 0), Some(8));
    // mov [rip-1], eax: relative to the end of the instruction.
    assert_eq!(
        address(&[0x89, 0x05, 0xff, 0xff, 0xff, 0xff], Mode::Long64, 0x1000),
        Some(0x1005)
    );
    // mov gs:[0xfee00300], eax by its absolute form, with 32-bit addresses.
    assert_eq!(
        address(&[0x65, 0x67, 0xa3, 0, 3, 0xe0, 0xfe], Mode::Long64, 0),
        Some(0xfee0_0300 + 0x10_0000)
    );
}

#[test]
fn a_bit_index_in_a_register_reaches_beyond_the_operand() {
    assert_eq!(bit_displacement(31, 4), 0);
    assert_eq!(bit_displacement(32, 4), 4);
    assert_eq!(bit_displacement(0xffff_ffff, 4), (-4i64) as u64);
    assert_eq!(bit_displacement(17, 2), 2);
    assert_eq!(bit_displacement(u64::MAX, 8), (-8i64) as u64);
}

#[test]
fn immediates_are_extended_to_the_operand() {
    let immediate = |bytes: &[u8], mode| match decode(bytes, mode).map(|i| i.operation) {
        Ok(
            Operation::Move {
                source: Operand::Immediate(value),
                ..
            }
            | Operation::Arithmetic {
                source: Operand::Immediate(value),
                ..
            },
        ) => value,
        other => panic!("{other:?}"),
    };
    // mov qword [rax], -1: four bytes, sign-extended.
    assert_eq!(
        immediate(&[0x48, 0xc7, 0, 0xff, 0xff, 0xff, 0xff], Mode::Long64),
        u64::MAX
    );
    assert_eq!(
        immediate(&[0xc7, 0, 0xff, 0xff, 0xff, 0xff], Mode::Long64),
        0xffff_ffff
    );
    assert_eq!(
        immediate(&[0x83, 0x08, 0x80], Mode::Protected32),
        0xffff_ff80
    );
    assert_eq!(immediate(&[0x80, 0x08, 0x80], Mode::Protected32), 0x80);
}

#[test]
fn repeats_and_string_operands() {
    let instruction = decode(&[0xf3, 0x65, 0xa4], Mode::Long64).expect("rep movsb");
    assert_eq!(instruction.prefixes.repeat, Some(Repeat::Equal));
    match instruction.operation {
        Operation::String {
            kind: StringKind::Movs,
            source: Some(source),
            destination: Some(destination),
        } => {
            assert_eq!((source.segment, source.base), (Segment::Gs, Some(6)));
            assert_eq!(
                (destination.segment, destination.base),
                (Segment::Es, Some(7))
            );
        }
        other => panic!("{other:?}"),
    }
}
