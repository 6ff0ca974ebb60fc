//! The names of the targets. `xtask` includes this file, too, to know them without building them.

/// Each target, and what it checks in a few words.
pub const TARGETS: [(&str, &str); 19] = [
    (
        "decoder",
        "lengths and meanings of instructions, against iced-x86",
    ),
    (
        "emulation",
        "any instruction at a device: its accesses are bounded",
    ),
    (
        "walk",
        "a guest's page tables, against a plain reading of the manual",
    ),
    (
        "ept",
        "map, unmap, protect in Intel's nested tables, against a plain map",
    ),
    ("npt", "the same in AMD's"),
    ("frames", "the frame allocator, against a plain map"),
    ("zeroes", "the frame allocator: what it hands out is zero"),
    ("handles", "a handle table, against a plain map"),
    (
        "vcpu-state",
        "registers that a hypercall sets, before VMX takes them",
    ),
    (
        "local-apic",
        "any access to a local APIC's registers; its order of priorities",
    ),
    ("apic-timer", "the local APIC's timer: deadlines lie ahead"),
    (
        "io-apic",
        "any access to an I/O APIC's registers; a level is neither lost nor doubled",
    ),
    (
        "devices",
        "any access to a PC's ports, at any time: 16550, 8259A, 8254, MC146818, ACPI, i8042, PCI",
    ),
    ("linux", "a bzImage: it stays in its memory"),
    ("pvh", "an executable with a PVH entry: the same"),
    ("multiboot", "a Multiboot image: the same"),
    (
        "image",
        "a file as each format, Plinth's own and firmware's among them: the same",
    ),
    (
        "archive",
        "the module archive, a tar: its files lie within it",
    ),
    ("machine", "machine files, in TOML: an error has words"),
];
