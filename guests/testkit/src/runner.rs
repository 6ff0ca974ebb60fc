//! Around every case: the neighbour must go on and find nothing changed, and the accounts must balance once the attacker is gone.

use plinth_rt::Outcome;

use crate::{accounts, neighbour};

/// Runs a case, which makes and ends its attackers itself.
pub fn watched(case: impl FnOnce() -> Outcome) -> Outcome {
    let rounds = neighbour::watch()?;
    let outcome = accounts::balanced(case);
    // What a case says of its attacker comes first, but a neighbour that was harmed is told in any case.
    match (outcome, neighbour::goes_on(rounds)) {
        (Err(why), Err(harm)) => Err(format_args!("{harm}; {why}").into()),
        (outcome, unharmed) => unharmed.and(outcome),
    }
}
