//! A domain without handles: whatever it asks for, it is told that it has no handle, and nothing changes.

use plinth_rt::abi::{Call, Status};
use plinth_rt::{Outcome, check};

use crate::child::{Child, Plan, STEPS, Step, agents, lets};
use crate::kit::{Must, Random, own};

tests!("no_handles":
    arguments_all_zero,
    arguments_all_ones,
    arguments_small,
    arguments_random,
    numbers_random,
    cannot_name_the_suites_objects,
);

/// The calls that need a handle.
fn handle_calls() -> impl Iterator<Item = Call> {
    Call::ALL
        .iter()
        .map(|(call, _)| *call)
        .filter(|call| call.0 >= 0x10)
}

fn without_handles() -> Result<Child, plinth_rt::Why> {
    let child = Child::new(&Plan {
        handles: 1,
        ..agents(1)
    })?;
    Ok(child)
}

/// Lets a child without handles make each call with arguments of this choice.
fn all_refused(mut choose: impl FnMut() -> [u64; 6]) -> Outcome {
    let child = without_handles()?;
    let mut steps = [Step::new(Call::VERSION, []); STEPS];
    let mut count = 0;
    for (step, call) in steps.iter_mut().zip(handle_calls()) {
        *step = Step::new(call, choose());
        count += 1;
    }
    check!(count == handle_calls().count(), "more calls than steps");
    lets(&child, &steps[..count])?;
    for (step, call) in handle_calls().enumerate() {
        let (status, _) = child.answer(0, step)?;
        check!(status == Status::BAD_HANDLE, "{}: {status:?}", call.name());
    }
    let info = child.domain.info().must("info")?;
    check!(info.handles == 0, "{} handles", info.handles);
    Ok(())
}

fn arguments_all_zero() -> Outcome {
    all_refused(|| [0; 6])
}

fn arguments_all_ones() -> Outcome {
    all_refused(|| [u64::MAX; 6])
}

/// What handles and addresses look like.
fn arguments_small() -> Outcome {
    let mut number = 0;
    for _ in 0..4 {
        all_refused(|| {
            number += 1;
            [number & 31, number & 7, 0x2000, 4096, 1, 7]
        })?;
    }
    Ok(())
}

fn arguments_random() -> Outcome {
    let mut random = Random::new(0x0123_4567_89ab_cdef);
    for _ in 0..8 {
        all_refused(|| {
            core::array::from_fn(|_| {
                let value = random.number();
                // Numbers of all lengths.
                value >> (random.number() & 63)
            })
        })?;
    }
    Ok(())
}

fn numbers_random() -> Outcome {
    let mut random = Random::new(0xfedc_ba98_7654_3210);
    let child = without_handles()?;
    let unknown = |number: u64| !Call::ALL.iter().any(|(call, _)| call.0 == number);
    let mut steps = [Step::new(Call::VERSION, []); STEPS];
    for step in &mut steps {
        let number = loop {
            let number = random.number() >> (random.number() & 63);
            if unknown(number) {
                break number;
            }
        };
        *step = Step::new(
            Call(number),
            core::array::from_fn::<_, 6, _>(|_| random.number()),
        );
    }
    lets(&child, &steps)?;
    for step in 0..STEPS {
        child.answered(0, step, Status::NO_CALL)?;
    }
    Ok(())
}

/// The numbers by which the suite names its objects mean nothing to a child.
fn cannot_name_the_suites_objects() -> Outcome {
    let numbers = [
        crate::kit::raw(own().any()),
        crate::kit::raw(crate::kit::system().any()),
    ];
    for number in numbers {
        all_refused(|| [number; 6])?;
    }
    Ok(())
}
