//! Measures how CPUs are shared.

#![no_std]
#![no_main]

plinth_rt::entry!(main);

fn main() -> u64 {
    0
}
