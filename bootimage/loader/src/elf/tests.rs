//! Tests with kernel files made here, whole and broken.

use bootloader_api::config::Mapping;
use proptest::prelude::*;

use super::*;

pub(crate) const BASE: u64 = 0xffff_ffff_8000_0000;

/// A program header: type, flags, address, offset in the file, length in the file and in memory.
type Header = (u32, u32, u64, u64, u64, u64);

/// Text at BASE, read-only data, then data of which the first page is sealed after relocation, then zeros.
pub(crate) const HEADERS: [Header; 4] = [
    (PT_LOAD, PF_X, BASE, 0x1000, 0x1800, 0x1800),
    (PT_LOAD, 0, BASE + 0x3010, 0x3010, 0x20, 0x20),
    (PT_LOAD, PF_W, BASE + 0x4100, 0x4100, 0x1000, 0x2f00),
    (PT_GNU_RELRO, 0, BASE + 0x4100, 0x4100, 0xf00, 0xf00),
];

pub(crate) fn file(kind: u16, headers: &[Header], config: &BootloaderConfig) -> Vec<u8> {
    let mut file: Vec<u8> = (0..0x7000).map(|index: u32| (index >> 4) as u8).collect();
    let mut put = |at: usize, data: &[u8]| file[at..at + data.len()].copy_from_slice(data);
    put(0, &[0; 0x1000]);
    put(0, b"\x7fELF\x02\x01\x01");
    put(16, &kind.to_le_bytes());
    put(18, &62u16.to_le_bytes());
    put(24, &(headers[0].2 + 0x10).to_le_bytes());
    put(32, &64u64.to_le_bytes());
    put(40, &0x6000u64.to_le_bytes());
    put(54, &[56, 0, headers.len() as u8, 0, 64, 0, 3, 0, 1, 0]);
    for (index, &(kind, flags, address, offset, file_len, len)) in headers.iter().enumerate() {
        let at = 64 + 56 * index;
        put(at, &kind.to_le_bytes());
        put(at + 4, &flags.to_le_bytes());
        for (field, value) in [(8, offset), (16, address), (32, file_len), (40, len)] {
            put(at + field, &value.to_le_bytes());
        }
    }
    // Sections: none, names, configuration.
    put(0x6000, &[0; 192]);
    for (at, name, offset, len) in [(0x6040, 1u32, 0x6200u64, 30u64), (0x6080, 11, 0x6300, 133)] {
        put(at, &name.to_le_bytes());
        put(at + 24, &offset.to_le_bytes());
        put(at + 32, &len.to_le_bytes());
    }
    put(0x6200, b"\0.shstrtab\0.bootloader-config\0");
    put(0x6300, &config.serialize());
    file
}

pub(crate) fn good() -> Vec<u8> {
    file(2, &HEADERS, &BootloaderConfig::new_default())
}

fn error(headers: &[Header]) -> ElfError {
    Kernel::parse(&file(2, headers, &BootloaderConfig::new_default())).unwrap_err()
}

#[test]
fn a_good_file_is_loaded_as_it_says() {
    let file = good();
    let kernel = Kernel::parse(&file).unwrap();
    assert_eq!(kernel.span(), BASE..BASE + 0x7000);
    assert_eq!(kernel.entry(), BASE + 0x10);
    assert!(!kernel.is_relocatable());
    let mut memory = vec![0xcc; 0x7000];
    kernel.load(&mut memory, 0).unwrap();
    assert_eq!(memory[..0x1800], file[0x1000..0x2800]);
    assert!(memory[0x1800..0x3010].iter().all(|&byte| byte == 0));
    assert_eq!(memory[0x3010..0x3030], file[0x3010..0x3030]);
    assert_eq!(memory[0x4100..0x5100], file[0x4100..0x5100]);
    assert!(
        memory[0x5100..].iter().all(|&byte| byte == 0),
        "what the file does not hold is zero"
    );
}

#[test]
fn pages_have_the_rights_of_their_segment() {
    let file = good();
    let pages: Vec<_> = Kernel::parse(&file).unwrap().pages().collect();
    let expected = [
        (0, Access::EXECUTE),
        (0x1000, Access::EXECUTE),
        (0x3000, Access::READ),
        (0x4000, Access::READ), // relocated, then sealed
        (0x5000, Access::READ_WRITE),
        (0x6000, Access::READ_WRITE),
    ];
    assert_eq!(
        pages,
        expected.map(|(offset, access)| (BASE + offset, access))
    );
}

#[test]
fn a_page_that_is_sealed_in_part_stays_writable() {
    let mut headers = HEADERS;
    headers[3].5 = 0xe00;
    let file = file(2, &headers, &BootloaderConfig::new_default());
    let page = Kernel::parse(&file)
        .unwrap()
        .pages()
        .find(|(page, _)| *page == BASE + 0x4000)
        .unwrap();
    assert_eq!(page.1, Access::READ_WRITE);
}

#[test]
fn the_configuration_is_read() {
    let mut config = BootloaderConfig::new_default();
    config.kernel_stack_size = 12345;
    config.mappings.physical_memory = Some(Mapping::FixedAddress(0xffff_8000_0000_0000));
    let file = file(2, &HEADERS, &config);
    assert_eq!(Kernel::parse(&file).unwrap().config, config);
}

#[test]
fn what_is_wrong_is_said() {
    let with = |index: usize, change: fn(&mut Header)| {
        let mut headers = HEADERS;
        change(&mut headers[index]);
        error(&headers)
    };
    assert_eq!(
        with(2, |h| h.3 = 0x6800),
        ElfError::Segment(2, "reaches beyond the end of the file")
    );
    assert_eq!(
        with(2, |h| h.3 = 0x6800).to_string(),
        "is damaged: segment 2 reaches beyond the end of the file"
    );
    assert_eq!(
        with(1, |h| h.4 = 0x21),
        ElfError::Segment(1, "is longer in the file than in memory")
    );
    assert_eq!(
        with(0, |h| h.1 = PF_X | PF_W),
        ElfError::Segment(0, "is both writable and executable")
    );
    assert_eq!(
        with(1, |h| h.5 = u64::MAX),
        ElfError::Segment(1, "reaches beyond the end of the address space")
    );
    assert_eq!(
        with(1, |h| h.2 = 1 << 50),
        ElfError::Segment(1, "is at an impossible address")
    );
    assert_eq!(
        with(1, |h| h.2 = BASE + 0x4000),
        ElfError::Damaged("two segments share a page")
    );
    assert_eq!(
        with(1, |h| h.2 = 0x1000),
        ElfError::Damaged("its segments are too far apart")
    );
    assert_eq!(
        with(0, |h| h.1 = 0),
        ElfError::Damaged("the entry point is outside of the code")
    );
    assert_eq!(
        error(&[(PT_TLS, 0, BASE, 0, 0, 0)]),
        ElfError::Damaged("there is nothing to load")
    );
}

#[test]
fn other_files_are_not_kernels() {
    assert_eq!(Kernel::parse(b"MZ").unwrap_err(), ElfError::NotElf);
    assert_eq!(
        Kernel::parse(b"\x7fELF").unwrap_err(),
        ElfError::Truncated("the file header reaches")
    );
    let wrong = |at: usize, value: u8| {
        let mut file = good();
        file[at] = value;
        matches!(Kernel::parse(&file), Err(ElfError::Wrong(_)))
    };
    assert!(wrong(4, 1), "32 bits");
    assert!(wrong(16, 1), "an object file");
    assert!(wrong(18, 3), "another CPU");
}

#[test]
fn a_missing_or_foreign_configuration_is_said() {
    let mut file = good();
    file[0x620b] = b'x';
    assert_eq!(
        Kernel::parse(&file).unwrap_err(),
        ElfError::Config("the section .bootloader-config is missing")
    );
    let mut file = good();
    file[0x6312] = 77; // the minor version
    assert!(matches!(
        Kernel::parse(&file),
        Err(ElfError::ApiVersion {
            kernel: (0, 77),
            loader: (0, 11)
        })
    ));
    let mut file = good();
    file[0x6300] ^= 1;
    assert!(matches!(
        Kernel::parse(&file),
        Err(ElfError::Config("invalid UUID"))
    ));
}

/// A relocatable file: a dynamic section and two relocations in the read-only data.
fn relocatable(kind: u64, target: u64) -> Vec<u8> {
    let headers = [
        (PT_LOAD, PF_X, 0, 0x1000, 0x1000, 0x1000),
        (PT_LOAD, 0, 0x2000, 0x2000, 0x1000, 0x1000),
        (PT_LOAD, PF_W, 0x4000, 0x4000, 0x1000, 0x1000),
        (PT_DYNAMIC, 0, 0x2000, 0x2000, 0x80, 0x80),
    ];
    let mut file = file(3, &headers, &BootloaderConfig::new_default());
    let words = [DT_RELA, 0x2100, DT_RELASZ, 48, DT_RELAENT, 24, DT_NULL, 0];
    for (index, word) in words.iter().enumerate() {
        file[0x2000 + 8 * index..][..8].copy_from_slice(&word.to_le_bytes());
    }
    let words = [0x4008, R_X86_64_RELATIVE, 0x10, target, kind, 0x20];
    for (index, word) in words.iter().enumerate() {
        file[0x2100 + 8 * index..][..8].copy_from_slice(&word.to_le_bytes());
    }
    file
}

#[test]
fn relocations_are_applied() {
    let file = relocatable(R_X86_64_RELATIVE, 0x4ff8);
    let kernel = Kernel::parse(&file).unwrap();
    assert!(kernel.is_relocatable());
    let mut memory = vec![0; 0x5000];
    kernel.load(&mut memory, BASE).unwrap();
    assert_eq!(u64_at(&memory, 0x4008), BASE + 0x10);
    assert_eq!(u64_at(&memory, 0x4ff8), BASE + 0x20);
}

#[test]
fn bad_relocations_are_refused() {
    let mut memory = vec![0; 0x5000];
    for (kind, target) in [
        (6, 0x4010),
        (R_X86_64_RELATIVE, 0x4ff9),
        (R_X86_64_RELATIVE, u64::MAX - 3),
        (8, 0x3000),
    ] {
        let file = relocatable(kind, target);
        assert!(matches!(
            Kernel::parse(&file).unwrap().load(&mut memory, 0),
            Err(ElfError::Damaged(_))
        ));
    }
    let mut file = relocatable(R_X86_64_RELATIVE, 0x4010);
    file[0x2008..0x2010].copy_from_slice(&0x2ff0u64.to_le_bytes());
    assert_eq!(
        Kernel::parse(&file).unwrap_err(),
        OUTSIDE,
        "a table that reaches out of its segment"
    );
    // The same, in a segment whose end is not in the file.
    let len = 64 + 56 + 40;
    file[len..len + 8].copy_from_slice(&0x1800u64.to_le_bytes());
    assert_eq!(Kernel::parse(&file).unwrap_err(), OUTSIDE);
}

#[test]
fn every_truncation_is_noticed() {
    // What lies behind the last section that is read may be missing.
    let needed = 0x6300 + BootloaderConfig::new_default().serialize().len();
    let file = good();
    for len in (0..0x400)
        .chain((0x400..needed).step_by(61))
        .chain([needed - 1])
    {
        assert!(Kernel::parse(&file[..len]).is_err(), "{len}");
    }
    assert!(Kernel::parse(&file[..needed]).is_ok());
}

/// Whatever parses can be loaded, or is refused.
fn use_it(file: &[u8]) {
    if let Ok(kernel) = Kernel::parse(file) {
        let span = kernel.span();
        assert!(
            kernel
                .pages()
                .all(|(page, access)| span.contains(&page)
                    && !(access.writable && access.executable))
        );
        if span.end - span.start < 1 << 20 {
            let _ = kernel.load(&mut vec![0; (span.end - span.start) as usize], 0x1234_5000);
        }
    }
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        use_it(&bytes);
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.extend(bytes);
        use_it(&file);
    }

    #[test]
    fn damaged_files_never_panic(dynamic: bool, changes in proptest::collection::vec(
        (prop_oneof![0usize..0x200, 0x2000usize..0x2140, 0x6000usize..0x6400], any::<u8>()), 1..6)) {
        let mut file = if dynamic { relocatable(R_X86_64_RELATIVE, 0x4ff8) } else { good() };
        for (at, value) in changes {
            file[at] = value;
        }
        use_it(&file);
    }

    #[test]
    fn damaged_words_never_panic(dynamic: bool, at in prop_oneof![0usize..0x200, 0x2000usize..0x2140, 0x6000usize..0x6100],
        value in prop_oneof![Just(u64::MAX), Just(i64::MAX as u64), Just(u64::MAX - 0xfff), any::<u64>()]) {
        let mut file = if dynamic { relocatable(R_X86_64_RELATIVE, 0x4ff8) } else { good() };
        let at = at & !7;
        file[at..at + 8].copy_from_slice(&value.to_le_bytes());
        use_it(&file);
    }
}
