//! The program that libFuzzer drives: one for all targets, since what takes time is to build it.
//!
//! `PLINTH_FUZZ_TARGET` names the target; where `PLINTH_FUZZ_SEEDS` names a directory, its seeds are written there first. Everything
//! else is libFuzzer's own command line.

#![no_main]

use std::path::Path;
use std::sync::OnceLock;
use std::{env, fs, process};

use plinth_fuzz::{Check, check, seeds};

static CHECK: OnceLock<Check> = OnceLock::new();

libfuzzer_sys::fuzz_target!(
    init: {
        let name = env::var("PLINTH_FUZZ_TARGET").unwrap_or_default();
        let Some(found) = check(&name) else {
            eprintln!("error: PLINTH_FUZZ_TARGET names no target: `{name}`");
            process::exit(2);
        };
        CHECK.get_or_init(|| found);
        if let Some(directory) = env::var_os("PLINTH_FUZZ_SEEDS") {
            for (number, seed) in seeds(&name).into_iter().enumerate() {
                let path = Path::new(&directory).join(format!("seed-{number}"));
                if let Err(error) = fs::write(&path, seed) {
                    eprintln!("error: cannot write {}: {error}", path.display());
                    process::exit(2);
                }
            }
        }
    },
    |bytes: &[u8]| {
        if let Some(check) = CHECK.get() {
            check(bytes);
        }
    }
);
