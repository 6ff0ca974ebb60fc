//! Budgets: what a domain may use of the machine, and what is charged to it.
//!
//! A domain's budget is taken from that of the domain that makes it. Whatever the kernel allocates on a domain's behalf
//! holds a [`Charge`], which gives back when it is dropped.

use plinth_abi::Status;

use super::shared::Ref;
use crate::sync::Mutex;

/// Amounts of what is budgeted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Amounts {
    /// 4 KiB frames.
    pub frames: u64,
    /// Of these, frames of Memory objects. Not limited by itself.
    pub memory_frames: u64,
    /// Bytes of kernel heap.
    pub heap: u64,
}

impl Amounts {
    /// Kernel heap only.
    pub const fn heap(bytes: u64) -> Self {
        Self {
            frames: 0,
            memory_frames: 0,
            heap: bytes,
        }
    }

    /// Frames that the kernel itself works with.
    pub const fn frames(frames: u64) -> Self {
        Self {
            frames,
            memory_frames: 0,
            heap: 0,
        }
    }

    fn plus(self, other: Self) -> Option<Self> {
        Some(Self {
            frames: self.frames.checked_add(other.frames)?,
            memory_frames: self.memory_frames.checked_add(other.memory_frames)?,
            heap: self.heap.checked_add(other.heap)?,
        })
    }

    fn minus(self, other: Self) -> Self {
        // What was added can be taken away; saturating keeps a defect from becoming a panic.
        Self {
            frames: self.frames.saturating_sub(other.frames),
            memory_frames: self.memory_frames.saturating_sub(other.memory_frames),
            heap: self.heap.saturating_sub(other.heap),
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct State {
    used: Amounts,
    /// Frames and heap that may be used.
    limit: Amounts,
    /// The domain is gone: what comes back goes to the parent.
    closed: bool,
}

impl State {
    const fn of(limit: Amounts) -> Self {
        Self {
            used: Amounts::heap(0),
            limit,
            closed: false,
        }
    }
}

/// The budget of a domain.
#[derive(Debug)]
pub struct Budget {
    parent: Option<Ref<Budget>>,
    state: Mutex<State>,
}

impl Budget {
    /// The machine's whole.
    pub const fn whole(limit: Amounts) -> Self {
        Self {
            parent: None,
            state: Mutex::new(State::of(limit)),
        }
    }

    /// A part of another budget.
    ///
    /// # Errors
    /// `OVER_BUDGET` where that has not so much left, `NO_MEMORY` where the heap is exhausted.
    pub fn part_of(parent: &Ref<Self>, limit: Amounts) -> Result<Ref<Self>, Status> {
        // Empty until something was taken: where one of the next steps fails, it is dropped, and nothing must go back then.
        let part = Ref::new(Self {
            parent: Some(parent.clone()),
            state: Mutex::new(State::of(Amounts::default())),
        })
        .map_err(|_| Status::NO_MEMORY)?;
        let mut state = parent.state.lock();
        let left = state.limit.minus(state.used);
        if state.closed || left.frames < limit.frames || left.heap < limit.heap {
            return Err(Status::OVER_BUDGET);
        }
        state.limit = state.limit.minus(limit);
        drop(state);
        part.state.lock().limit = limit;
        Ok(part)
    }

    /// What is used, and the limit.
    pub fn amounts(&self) -> (Amounts, Amounts) {
        let state = self.state.lock();
        (state.used, state.limit)
    }

    pub(crate) fn take(&self, amounts: Amounts) -> Result<(), Status> {
        let mut state = self.state.lock();
        let used = state.used.plus(amounts).ok_or(Status::OVER_BUDGET)?;
        if state.closed || used.frames > state.limit.frames || used.heap > state.limit.heap {
            return Err(Status::OVER_BUDGET);
        }
        state.used = used;
        Ok(())
    }

    pub(crate) fn give_back(&self, amounts: Amounts) {
        let mut state = self.state.lock();
        state.used = state.used.minus(amounts);
        if state.closed {
            state.limit = state.limit.minus(amounts);
            drop(state);
            self.pass_up(amounts);
        }
    }

    fn pass_up(&self, amounts: Amounts) {
        if let Some(parent) = &self.parent {
            parent.grow(amounts);
        }
    }

    /// More to use, or more to pass on.
    fn grow(&self, amounts: Amounts) {
        let mut state = self.state.lock();
        if state.closed {
            drop(state);
            return self.pass_up(amounts);
        }
        state.limit.frames = state.limit.frames.saturating_add(amounts.frames);
        state.limit.heap = state.limit.heap.saturating_add(amounts.heap);
    }

    /// The domain is gone: what is unused goes back to where it came from at once, the rest when it is given back.
    pub fn close(&self) {
        if self.parent.is_none() {
            // The machine's whole outlives every domain.
            return;
        }
        let mut state = self.state.lock();
        if state.closed {
            return;
        }
        state.closed = true;
        let unused = state.limit.minus(state.used);
        state.limit = state.used;
        drop(state);
        self.pass_up(Amounts {
            memory_frames: 0,
            ..unused
        });
    }
}

impl Drop for Budget {
    fn drop(&mut self) {
        self.close();
    }
}

/// What an object uses of a budget; goes back when dropped.
#[derive(Debug)]
pub struct Charge {
    budget: Ref<Budget>,
    amounts: Amounts,
}

impl Charge {
    /// Charges the amounts.
    ///
    /// # Errors
    /// `OVER_BUDGET`.
    pub fn new(budget: &Ref<Budget>, amounts: Amounts) -> Result<Self, Status> {
        budget.take(amounts)?;
        Ok(Self {
            budget: budget.clone(),
            amounts,
        })
    }

    /// Charges more.
    ///
    /// # Errors
    /// `OVER_BUDGET`; nothing has changed then.
    pub fn add(&mut self, amounts: Amounts) -> Result<(), Status> {
        let sum = self.amounts.plus(amounts).ok_or(Status::OVER_BUDGET)?;
        self.budget.take(amounts)?;
        self.amounts = sum;
        Ok(())
    }

    /// Gives a part of it back.
    pub fn reduce(&mut self, amounts: Amounts) {
        self.amounts = self.amounts.minus(amounts);
        self.budget.give_back(amounts);
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.give_back(self.amounts);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn amounts(frames: u64, heap: u64) -> Amounts {
        Amounts {
            frames,
            memory_frames: 0,
            heap,
        }
    }

    fn whole() -> Ref<Budget> {
        Ref::new(Budget::whole(amounts(100, 1000))).unwrap()
    }

    #[test]
    fn charges_are_limited_and_come_back() {
        let budget = whole();
        let first = Charge::new(&budget, amounts(60, 10)).unwrap();
        assert_eq!(
            Charge::new(&budget, amounts(41, 0)).err(),
            Some(Status::OVER_BUDGET)
        );
        assert_eq!(
            Charge::new(&budget, amounts(0, 991)).err(),
            Some(Status::OVER_BUDGET)
        );
        let mut second = Charge::new(&budget, amounts(40, 990)).unwrap();
        assert_eq!(second.add(amounts(1, 0)), Err(Status::OVER_BUDGET));
        second.reduce(amounts(10, 0));
        assert_eq!(budget.amounts().0, amounts(90, 1000));
        drop((first, second));
        assert_eq!(budget.amounts().0, Amounts::default());
    }

    #[test]
    fn a_part_is_taken_and_goes_back_with_the_last_charge() {
        let budget = whole();
        let part = Budget::part_of(&budget, amounts(50, 500)).unwrap();
        assert_eq!(budget.amounts().1, amounts(50, 500));
        assert_eq!(
            Budget::part_of(&budget, amounts(51, 0)).err(),
            Some(Status::OVER_BUDGET)
        );
        assert_eq!(
            budget.amounts().1,
            amounts(50, 500),
            "a refusal changes nothing"
        );
        let charge = Charge::new(&part, amounts(20, 200)).unwrap();
        part.close();
        assert_eq!(budget.amounts().1, amounts(80, 800));
        assert_eq!(
            Charge::new(&part, amounts(1, 0)).err(),
            Some(Status::OVER_BUDGET)
        );
        drop(part);
        assert_eq!(budget.amounts().1, amounts(80, 800));
        drop(charge);
        assert_eq!(budget.amounts().1, amounts(100, 1000));
    }

    #[test]
    fn what_is_under_a_closed_budget_goes_to_the_one_above() {
        let top = whole();
        let middle = Budget::part_of(&top, amounts(50, 500)).unwrap();
        let low = Budget::part_of(&middle, amounts(30, 300)).unwrap();
        middle.close();
        assert_eq!(top.amounts().1, amounts(70, 700));
        low.close();
        assert_eq!(top.amounts().1, amounts(100, 1000));
    }

    #[test]
    fn sums_do_not_wrap() {
        let budget = whole();
        let _one = Charge::new(&budget, amounts(1, 1)).unwrap();
        assert_eq!(
            Charge::new(&budget, amounts(u64::MAX, 0)).err(),
            Some(Status::OVER_BUDGET)
        );
    }
}
