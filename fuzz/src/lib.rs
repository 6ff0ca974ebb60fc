//! Fuzz targets: what reads anything that a guest, or a file, could hold. `cargo xtask fuzz` runs them under libFuzzer; their tests
//! here run each a little with chance alone, so that none of them breaks unnoticed.
//!
//! The properties are those that the host's tests of the packages check. Where such a test has a strategy that makes steps, each four
//! bytes of an input are the seed of one step: what a step is, is chance, and the fuzzer finds out which ones to put one after another.

pub mod targets;

use plinth_abi::VcpuState;
use plinth_guest_control::config::Machine;
use plinth_image::Format;
use plinth_kernel::decode::Mode;
use plinth_kernel::fuzzing as kernel;
use plinth_kernel::mem::nested::EntryFormat;
use proptest::arbitrary::any;
use proptest::option;
use proptest::sample::Index;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};
use zerocopy::{FromBytes, IntoBytes};

pub use targets::TARGETS;

/// Checks an input, and panics where a property is broken.
pub type Check = fn(&[u8]);

/// What checks the inputs of the target called `name`.
pub fn check(name: &str) -> Option<Check> {
    Some(match name {
        "decoder" => decoder,
        "emulation" => emulation,
        "walk" => walk,
        "ept" => nested::<kernel::nested::Ept>,
        "npt" => nested::<kernel::nested::Npt>,
        "frames" => frames,
        "zeroes" => |bytes| {
            let step = (0u8..3, any::<Index>());
            holds(kernel::frames::hands_out_zeroes(steps(bytes, &step)));
        },
        "handles" => |bytes| {
            let steps = bytes.as_chunks().0.iter();
            let steps = steps.map(|[adds, which]| (adds & 1 != 0, *which));
            holds(kernel::handles::behaves_like_a_map(steps.collect()));
        },
        "vcpu-state" => vcpu_state,
        "local-apic" => local_apic,
        "apic-timer" => |bytes| {
            use kernel::local_apic::{change, deadlines_lie_ahead};
            holds(deadlines_lie_ahead(steps(bytes, &change())));
        },
        "io-apic" => io_apic,
        "devices" => |bytes| {
            use plinth_devices::fuzzing::{gust, keeps_the_owner_informed};
            holds(keeps_the_owner_informed(steps(bytes, &gust())));
        },
        "linux" => plinth_image::fuzzing::linux,
        "pvh" => plinth_image::fuzzing::pvh,
        "multiboot" => plinth_image::fuzzing::multiboot,
        "image" => plinth_image::fuzzing::any,
        "archive" => kernel::modules::gives_parts_of,
        "machine" => machine,
        _ => return None,
    })
}

/// Inputs for the fuzzer to begin with. A target whose inputs are steps needs none.
pub fn seeds(name: &str) -> Vec<Vec<u8>> {
    match name {
        "decoder" | "emulation" => INSTRUCTIONS
            .iter()
            .flat_map(|instruction| (0..3).map(|mode| [&[mode], *instruction].concat()))
            .collect(),
        "vcpu-state" => kernel::vcpu_state::good_states()
            .map(|state| state.as_bytes().to_vec())
            .to_vec(),
        "linux" => plinth_image::fuzzing::linux_seeds(),
        "pvh" => plinth_image::fuzzing::pvh_seeds(),
        "multiboot" => plinth_image::fuzzing::multiboot_seeds(),
        "image" => plinth_image::fuzzing::any_seeds(),
        "archive" => vec![kernel::modules::archive()],
        "machine" => vec![MACHINE.as_bytes().to_vec()],
        _ => Vec::new(),
    }
}

/// Instructions of several shapes.
const INSTRUCTIONS: [&[u8]; 8] = [
    b"\x89\x05\x10\x20\x30\x40",
    b"\x66\xf3\x48\xa5",
    b"\x65\x67\x8a\x44\x8e\x12",
    b"\x0f\x22\xc3",
    b"\xf0\x0f\xba\x2c\x24\x07",
    b"\xc5\xf8\x28\x04\x25\x01\x02\x03\x04",
    b"\x62\xf1\x7c\x48\x28\x44\x24\x01",
    b"\x8f\xe8\x78\xcc\x04\x24\x07",
];

/// A machine file with every key.
const MACHINE: &str = r#"memory = "512 KiB"
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
devices = ["debug-console", "com1"]
autostart = true
on-end = "restart"
on-reboot = "destroy"
expect = "status 3"
time-limit = 0.5
handles = ["system", "self", "vcpu", "modules"]
budget = "1 GiB"
"#;

/// The steps that a strategy makes of an input.
fn steps<S: Strategy>(bytes: &[u8], strategy: &S) -> Vec<S::Value> {
    let seeds = bytes.as_chunks().0.iter().take(MOST_STEPS);
    // A strategy that filters may give up.
    seeds.filter_map(|seed| step(*seed, strategy)).collect()
}

/// As many steps as an input has at most: about what the tests' have.
const MOST_STEPS: usize = 200;

fn step<S: Strategy>(seed: [u8; 4], strategy: &S) -> Option<S::Value> {
    let seed = [seed, *b"seed", *b" of ", *b"one."].concat();
    let rng = TestRng::from_seed(RngAlgorithm::XorShift, &seed);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    Some(strategy.new_tree(&mut runner).ok()?.current())
}

/// Ends the run where a property is broken.
fn holds(result: Result<(), TestCaseError>) {
    if let Err(error) = result {
        panic!("{error}");
    }
}

/// A part of the input that says which of several things is done with the rest.
fn choose(bytes: &[u8]) -> (u8, &[u8]) {
    bytes
        .split_first()
        .map_or((0, bytes), |(first, rest)| (*first, rest))
}

/// The mode that a byte chooses, and an encoding in that mode.
fn encoding(bytes: &[u8]) -> (Mode, [u8; 16], &[u8]) {
    let (choice, bytes) = choose(bytes);
    let mode = [Mode::Real16, Mode::Protected32, Mode::Long64][usize::from(choice % 3)];
    let mut encoding = [0x24; 16];
    let (given, rest) = bytes.split_at(bytes.len().min(encoding.len()));
    encoding[..given.len()].copy_from_slice(given);
    (mode, encoding, rest)
}

fn decoder(bytes: &[u8]) {
    let (mode, encoding, _) = encoding(bytes);
    kernel::decoder::check(&encoding, mode);
}

fn emulation(bytes: &[u8]) {
    let (mode, encoding, rest) = encoding(bytes);
    let mut values = [0x0123_4567_89ab_cdef; 17];
    for (value, bytes) in values.iter_mut().zip(rest.as_chunks().0) {
        *value = u64::from_le_bytes(*bytes);
    }
    kernel::emulation::is_bounded(&encoding[..15], mode, values);
}

fn walk(bytes: &[u8]) {
    match choose(bytes) {
        (0..0x80, rest) => {
            let case = kernel::walk::Case::of(&padded(rest));
            holds(kernel::walk::follows_the_reference(case));
        }
        (bits, rest) => {
            let words = padded::<{ 8 * (64 + 5) }>(rest);
            let words = words.as_chunks().0.iter();
            let words: Vec<_> = words.map(|word| u64::from_le_bytes(*word)).collect();
            let [cr0, cr3, cr4, efer, linear, ref tables @ ..] = words[..] else {
                return;
            };
            let noise = (
                tables.to_vec(),
                (cr0, cr3, cr4, efer, linear),
                u32::from(bits) % 70,
            );
            holds(kernel::walk::stays_in_bounds(noise));
        }
    }
}

/// The first bytes, and zeros where there are too few.
fn padded<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut padded = [0; N];
    let length = bytes.len().min(N);
    padded[..length].copy_from_slice(&bytes[..length]);
    padded
}

/// Some steps fail for want of a frame. Gibibytes are mapped by few inputs only: to look at all that is mapped takes long then.
fn nested<F: EntryFormat>(bytes: &[u8]) {
    use kernel::nested::{follows_the_model, step};
    let (choice, rest) = choose(bytes);
    let mut steps = steps(rest, &(step(), option::of(1usize..6)));
    steps.truncate(16);
    if choice < 0xf0 {
        for (step, _) in &mut steps {
            *step = step.at_most(1030);
        }
    }
    holds(follows_the_model::<F>(&steps));
}

fn frames(bytes: &[u8]) {
    let (runs, rest) = bytes.split_at(bytes.len().min(9));
    // Short runs: they are what takes the time.
    let runs: Vec<_> = runs
        .as_chunks()
        .0
        .iter()
        .map(|[high, low, length]| {
            let start = u64::from(u16::from_be_bytes([*high, *low])) % 1100;
            (start, 1 + u64::from(length % 40))
        })
        .collect();
    let steps = steps(rest, &kernel::frames::step());
    holds(kernel::frames::follows_the_model(&runs, steps));
}

fn vcpu_state(bytes: &[u8]) {
    let whole: [u8; size_of::<VcpuState>()] = padded(bytes);
    if let Ok(state) = VcpuState::read_from_bytes(&whole) {
        kernel::vcpu_state::judges(&state);
    }
}

fn local_apic(bytes: &[u8]) {
    use kernel::local_apic::{accepts_by_priority, breaks_no_law, goes_round, tame, wild};
    holds(match choose(bytes) {
        (0..0x80, rest) => breaks_no_law(steps(rest, &wild())),
        (0x80..0xc0, rest) => accepts_by_priority(steps(rest, &tame())),
        (_, rest) => goes_round(rest.iter().map(|byte| byte % 5).collect()),
    });
}

fn io_apic(bytes: &[u8]) {
    use kernel::io_apic::{event, loses_and_doubles_nothing, reads_change_nothing};
    holds(match choose(bytes) {
        (0..0x80, rest) => loses_and_doubles_nothing(steps(rest, &event())),
        (_, rest) => {
            let accesses = rest.as_chunks().0.iter().map(|bytes| {
                let [a, b, c, d, e, f, g, h, near, pin] = *bytes;
                let (offset, value) = ([a, b, c, d], [e, f, g, h]);
                (
                    u32::from_le_bytes(offset),
                    u32::from_le_bytes(value),
                    near & 1 != 0,
                    pin,
                )
            });
            reads_change_nothing(accesses.collect())
        }
    });
}

fn machine(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    match Machine::parse("name", text) {
        Ok(machine) => {
            machine.budget();
            machine.schedule();
            for format in Format::ALL {
                machine.platform(format, true);
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// xorshift64*: the same in every run.
    struct Random(u64);

    impl Random {
        fn next(&mut self) -> u64 {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
        }

        fn bytes(&mut self, length: usize) -> Vec<u8> {
            (0..length).map(|_| (self.next() >> 40) as u8).collect()
        }
    }

    /// Seeds as they are, empty and random inputs, and seeds with one byte changed.
    #[test]
    fn every_target_runs() {
        let mut random = Random(0x0123_4567_89ab_cdef);
        for (name, _) in TARGETS {
            let check = check(name).unwrap_or_else(|| panic!("{name} is not there"));
            check(&[]);
            for _ in 0..12 {
                let length = random.next() as usize % 200;
                check(&random.bytes(length));
            }
            for seed in seeds(name) {
                check(&seed);
                for _ in 0..20 {
                    let mut seed = seed.clone();
                    let at = random.next() as usize % seed.len();
                    seed[at] = random.next() as u8;
                    check(&seed);
                }
            }
        }
        assert!(check("nothing").is_none());
    }
}
