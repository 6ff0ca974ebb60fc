//! What is to be run: the word `fuzz=` of the command line, parts between commas.

use core::fmt;

use plinth_testkit::options::option;

/// The seed where none is given.
const SEED: u64 = 1;

/// What is to be run.
#[derive(Clone, Copy)]
pub struct Orders {
    /// `calls` or `exits`: only this fuzzer.
    pub only: Option<&'static str>,
    /// `seed=N`.
    pub seed: u64,
    /// `first=N`: the number of the first round.
    pub first: u64,
    /// `rounds=N`: so many rounds, whatever the numbers below are.
    pub rounds: Option<u64>,
    /// `calls=N`: rounds until so many calls have been made.
    pub calls: Option<u64>,
    /// `victims=N`: rounds until there were so many victims.
    pub victims: Option<u64>,
    /// `tell`: each step is told before it is made.
    pub tells: bool,
}

impl Orders {
    /// What the command line says. What it says and means nothing has no effect.
    pub fn given() -> Self {
        let mut orders = Self {
            only: None,
            seed: SEED,
            first: 0,
            rounds: None,
            calls: None,
            victims: None,
            tells: false,
        };
        for part in option("fuzz").unwrap_or_default().split(',') {
            match part.split_once('=') {
                None if part == "tell" => orders.tells = true,
                None if !part.is_empty() => orders.only = Some(part),
                None => {}
                Some((key, value)) => {
                    let value = value.parse().ok();
                    match key {
                        "seed" => orders.seed = value.unwrap_or(SEED),
                        "first" => orders.first = value.unwrap_or(0),
                        "rounds" => orders.rounds = value,
                        "calls" => orders.calls = value,
                        "victims" => orders.victims = value,
                        _ => {}
                    }
                }
            }
        }
        orders
    }

    /// Whether this fuzzer is to be run.
    pub fn want(&self, fuzzer: &str) -> bool {
        self.only.is_none_or(|only| only == fuzzer)
    }

    /// Whether a run is over with so many rounds and steps, of which there are to be `most`.
    pub fn are_done(&self, rounds: u64, steps: u64, most: u64) -> bool {
        match self.rounds {
            Some(most) => rounds >= most,
            None => steps >= most,
        }
    }
}

/// The word that runs one round of a fuzzer again.
pub struct Again {
    /// The fuzzer.
    pub fuzzer: &'static str,
    /// The seed.
    pub seed: u64,
    /// The round.
    pub round: u64,
}

impl fmt::Display for Again {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            fuzzer,
            seed,
            round,
        } = self;
        write!(f, "fuzz={fuzzer},seed={seed},first={round},rounds=1")
    }
}
