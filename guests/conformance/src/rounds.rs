//! Many lives: domains that are made, started and ended, after which nothing may be left of them.

use plinth_rt::abi::{DomainState, Reason};
use plinth_rt::{Outcome, Snippet, check, hypercall, println, snippet};

use crate::accounts;
use crate::child::{Child, Plan, count, end, spin, wait};
use crate::kit::{Must, Random, sleep};

tests!("rounds":
    ended_by_themselves,
    killed_at_any_moment,
    paused_and_killed_at_any_moment,
    side_by_side,
    a_thousand,
    accounts_are_as_at_the_start,
);

/// Domains that end in different ways.
fn ended_by_themselves() -> Outcome {
    for round in 0..100 {
        let (code, reason): (Snippet, Reason) = match round % 4 {
            0 => (end(), Reason::STATUS),
            1 => (snippet!("ud2"), Reason::TRIPLE_FAULT),
            2 => (snippet!("mov [0x100000], rax"), Reason::NESTED_FAULT),
            _ => (snippet!("hlt"), Reason::HALTED),
        };
        let child = Child::running(code)?;
        child.ends(reason)?;
    }
    Ok(())
}

/// Lets a time go by that is another each time: up to 60 microseconds awake, or as much asleep.
fn a_while(random: &mut Random) {
    let ns = random.number() % 60_000;
    if random.number().is_multiple_of(4) {
        sleep(ns);
        return;
    }
    let deadline = hypercall::clock() + ns;
    while hypercall::clock() < deadline {}
}

fn killed_at_any_moment() -> Outcome {
    let mut random = Random::new(0x5eed);
    for round in 0..200 {
        let code = match round % 4 {
            0 => spin(),
            1 => wait(),
            2 => count(),
            _ => snippet!("2: mov eax, 3", "call r15", "jmp 2b"),
        };
        let child = Child::running(code)?;
        a_while(&mut random);
        child.domain.kill().must("kill")?;
        a_while(&mut random);
        child.destroy()?;
        check!(child.is(DomainState::DESTROYED)?, "round {round}");
    }
    Ok(())
}

fn paused_and_killed_at_any_moment() -> Outcome {
    let mut random = Random::new(0xfeed);
    for round in 0..100 {
        let child = Child::new(&Plan {
            vcpus: 2,
            ..Plan::new(if round % 2 == 0 { count() } else { wait() })
        })?;
        child.start()?;
        a_while(&mut random);
        child.domain.pause().must("pause")?;
        a_while(&mut random);
        if random.number().is_multiple_of(2) {
            child.domain.resume().must("resume")?;
            a_while(&mut random);
        }
        child.domain.kill().must("kill")?;
        child.ends(Reason::KILLED)?;
    }
    Ok(())
}

/// Twenty at a time; they end in another order than they began.
fn side_by_side() -> Outcome {
    const CHILDREN: usize = 20;
    for _ in 0..3 {
        let mut children: [Option<Child>; CHILDREN] = [const { None }; CHILDREN];
        for place in &mut children {
            *place = Some(Child::running(count())?);
        }
        for index in 0..CHILDREN {
            // 7 and 20 have no common divisor: each gets its turn.
            if let Some(place) = children.get_mut(index * 7 % CHILDREN) {
                *place = None;
            }
        }
    }
    Ok(())
}

/// The harness compares the accounts before and after.
fn a_thousand() -> Outcome {
    let plan = Plan::new(spin());
    for round in 1..=1000 {
        let child = Child::new(&plan)?;
        child.start()?;
        child.domain.kill().must("kill")?;
        drop(child);
        if round % 250 == 0 {
            println!("rounds: {round} of 1000");
        }
    }
    Ok(())
}

/// After all tests: free frames, heap, handles and budgets.
fn accounts_are_as_at_the_start() -> Outcome {
    accounts::as_at_the_start()
}
