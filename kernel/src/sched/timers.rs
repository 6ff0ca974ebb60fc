//! What waits for a time: a binary heap, from which anything can be taken out again. Pure.

use alloc::vec::Vec;

/// What can wait: it remembers its place in the heap, [`NOWHERE`] while it is in none.
pub trait Waiter {
    /// The place remembered last.
    fn place(&self) -> usize;
    /// Remembers a place.
    fn set_place(&self, place: usize);
}

/// The place of what is in no heap.
pub const NOWHERE: usize = usize::MAX;

/// Waiters by their deadlines. Adding and taking out take logarithmic time, looking at the earliest constant time.
#[derive(Debug)]
pub struct Timers<T>(Vec<(u64, T)>);

impl<T: Waiter> Timers<T> {
    /// None.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Makes room for `count` waiters in all.
    ///
    /// # Errors
    /// Where the heap is exhausted.
    pub fn reserve(&mut self, count: usize) -> Result<(), alloc::collections::TryReserveError> {
        self.0.try_reserve(count.saturating_sub(self.0.len()))
    }

    /// The earliest deadline.
    pub fn earliest(&self) -> Option<u64> {
        self.0.first().map(|(deadline, _)| *deadline)
    }

    /// Adds one that is in no heap. There has to be room for it ([`Timers::reserve`]).
    pub fn add(&mut self, deadline: u64, waiter: T) {
        let place = self.0.len();
        waiter.set_place(place);
        self.0.push((deadline, waiter));
        self.rise(place);
    }

    /// As [`Timers::add`], but it may be in this heap already: then its deadline is another one from now on.
    pub fn set(&mut self, deadline: u64, waiter: &T)
    where
        T: Clone,
    {
        let place = waiter.place();
        match self.0.get_mut(place) {
            Some((old, _)) if *old == deadline => {}
            Some((old, _)) => {
                *old = deadline;
                self.rise(place);
                self.sink(waiter.place());
            }
            None => self.add(deadline, waiter.clone()),
        }
    }

    /// Takes out the earliest, if its deadline is not after `now`.
    pub fn take_due(&mut self, now: u64) -> Option<T> {
        if self.earliest()? > now {
            return None;
        }
        self.take_at(0)
    }

    /// Takes out `waiter`, if it is in this heap.
    pub fn take(&mut self, waiter: &T) -> Option<T> {
        self.take_at(waiter.place())
    }

    fn take_at(&mut self, place: usize) -> Option<T> {
        if place >= self.0.len() {
            return None;
        }
        let (_, waiter) = self.0.swap_remove(place);
        waiter.set_place(NOWHERE);
        if let Some((_, moved)) = self.0.get(place) {
            moved.set_place(place);
            self.rise(place);
            self.sink(place);
        }
        Some(waiter)
    }

    fn deadline(&self, place: usize) -> Option<u64> {
        self.0.get(place).map(|(deadline, _)| *deadline)
    }

    fn swap(&mut self, a: usize, b: usize) {
        self.0.swap(a, b);
        for place in [a, b] {
            if let Some((_, waiter)) = self.0.get(place) {
                waiter.set_place(place);
            }
        }
    }

    fn rise(&mut self, mut place: usize) {
        while place > 0 {
            let parent = (place - 1) / 2;
            if self.deadline(parent) <= self.deadline(place) {
                return;
            }
            self.swap(parent, place);
            place = parent;
        }
    }

    fn sink(&mut self, mut place: usize) {
        loop {
            let (left, right) = (2 * place + 1, 2 * place + 2);
            let Some(mut least) = self.deadline(left) else {
                return;
            };
            let mut child = left;
            if let Some(other) = self.deadline(right).filter(|&other| other < least) {
                least = other;
                child = right;
            }
            if self.deadline(place).is_none_or(|own| own <= least) {
                return;
            }
            self.swap(place, child);
            place = child;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use proptest::prelude::*;

    use super::*;

    struct One(Cell<usize>);

    impl Waiter for Rc<One> {
        fn place(&self) -> usize {
            self.0.get()
        }

        fn set_place(&self, place: usize) {
            self.0.set(place);
        }
    }

    proptest! {
        #[test]
        fn they_come_out_in_order(
            deadlines in prop::collection::vec(0u64..50, 0..60),
            changed in prop::collection::vec((any::<u8>(), 0u64..50), 0..30),
            taken in prop::collection::vec(any::<u8>(), 0..30),
        ) {
            let mut timers = Timers::new();
            timers.reserve(deadlines.len()).unwrap();
            let mut all: Vec<_> = deadlines.into_iter().map(|deadline| (deadline, Rc::new(One(Cell::new(NOWHERE))))).collect();
            for (deadline, one) in &all {
                timers.set(*deadline, one);
            }
            for (which, deadline) in changed {
                let which = usize::from(which) % all.len().max(1);
                if let Some((old, one)) = all.get_mut(which) {
                    *old = deadline;
                    timers.set(deadline, one);
                }
            }
            for which in taken {
                if all.is_empty() {
                    break;
                }
                let (_, one) = all.swap_remove(usize::from(which) % all.len());
                prop_assert!(Rc::ptr_eq(&timers.take(&one).unwrap(), &one));
                prop_assert!(timers.take(&one).is_none());
            }
            all.sort_by_key(|(deadline, _)| *deadline);
            let mut last = 0;
            for (deadline, _) in all {
                prop_assert_eq!(timers.earliest(), Some(deadline));
                prop_assert!(deadline == 0 || timers.take_due(deadline - 1).is_none());
                let one = timers.take_due(deadline).unwrap();
                prop_assert_eq!(one.place(), NOWHERE);
                prop_assert!(deadline >= last);
                last = deadline;
            }
            prop_assert_eq!(timers.earliest(), None);
        }
    }
}
