//! The queue of one CPU: who is ready, in which order, and who waits for a time.

use alloc::collections::VecDeque;

use plinth_abi::Status;

use super::timers::{Timers, Waiter};

/// A place in a queue.
#[derive(Debug)]
pub struct Place<T> {
    /// Who has it.
    pub vcpu: T,
    /// The vCPU's ticket; another one means that the place is out of date.
    pub ticket: u32,
    /// Its weight, which is part of the CPU's load.
    pub weight: u16,
    /// The CPU that it must run on, or [`Place::ANY_CPU`].
    pub cpu: u16,
}

impl<T> Place<T> {
    /// It may run on any CPU.
    pub const ANY_CPU: u16 = u16::MAX;

    const fn is_pinned(&self) -> bool {
        self.cpu != Self::ANY_CPU
    }
}

/// Where in the queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Position {
    /// Before all others: it has just been woken, and has credit left.
    Boosted,
    /// Before those that have not been woken: its turn was interrupted.
    Front,
    /// Behind all others.
    Back,
}

/// A CPU's queue. Adding and taking the next one take constant time.
#[derive(Debug)]
pub struct Queue<T> {
    /// The first of the woken, if nobody was woken before: most often there is one at a time.
    first: Option<Place<T>>,
    boosted: VecDeque<Place<T>>,
    ready: VecDeque<Place<T>>,
    /// Who waits for a time.
    pub timers: Timers<T>,
}

impl<T: Waiter + PartialEq> Queue<T> {
    /// Nobody.
    pub const fn new() -> Self {
        Self {
            first: None,
            boosted: VecDeque::new(),
            ready: VecDeque::new(),
            timers: Timers::new(),
        }
    }

    /// Makes room for `count` vCPUs in all.
    ///
    /// # Errors
    /// `NO_MEMORY`.
    pub fn reserve(&mut self, count: usize) -> Result<(), Status> {
        let (boosted, ready) = (self.boosted.len(), self.ready.len());
        self.boosted
            .try_reserve(count.saturating_sub(boosted))
            .and_then(|()| self.ready.try_reserve(count.saturating_sub(ready)))
            .and_then(|()| self.timers.reserve(count))
            .map_err(|_| Status::NO_MEMORY)
    }

    /// Adds one. There is room: [`Queue::reserve`] made it.
    #[inline]
    pub fn add(&mut self, place: Place<T>, position: Position) {
        match position {
            Position::Boosted if !self.has_boosted() => self.first = Some(place),
            Position::Boosted => self.boosted.push_back(place),
            Position::Front => self.ready.push_front(place),
            Position::Back => self.ready.push_back(place),
        }
    }

    /// Takes the next one.
    pub fn next(&mut self) -> Option<Place<T>> {
        if self.has_boosted() {
            self.first.take().or_else(|| self.boosted.pop_front())
        } else {
            self.ready.pop_front()
        }
    }

    /// Takes one that may run on another CPU, whoever would have to wait longest first.
    pub fn give_away(&mut self) -> Option<Place<T>> {
        let at = self.ready.iter().rposition(|place| !place.is_pinned());
        match at {
            Some(at) => self.ready.remove(at),
            None => self.first.take_if(|place| !place.is_pinned()).or_else(|| {
                let at = self.boosted.iter().position(|place| !place.is_pinned())?;
                self.boosted.remove(at)
            }),
        }
    }

    /// Takes out a vCPU, wherever it is: the weights of its places.
    pub fn remove(&mut self, vcpu: &T) -> u64 {
        let first = self.first.take_if(|place| place.vcpu == *vcpu);
        let others = [&mut self.boosted, &mut self.ready].map(|list| {
            let at = list.iter().position(|place| place.vcpu == *vcpu)?;
            list.remove(at)
        });
        let places = first.into_iter().chain(others.into_iter().flatten());
        places.map(|place| u64::from(place.weight)).sum()
    }

    /// Whether somebody has been woken and should run at once.
    pub fn has_boosted(&self) -> bool {
        self.first.is_some() || !self.boosted.is_empty()
    }

    /// Whether nobody is ready.
    pub fn is_empty(&self) -> bool {
        !self.has_boosted() && self.ready.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq)]
    struct Number(u32);

    impl Waiter for Number {
        fn place(&self) -> usize {
            super::super::NOWHERE
        }

        fn set_place(&self, _: usize) {}
    }

    fn place(number: u32, pinned: bool) -> Place<Number> {
        Place {
            vcpu: Number(number),
            ticket: 0,
            weight: number as u16,
            cpu: if pinned { 0 } else { Place::<Number>::ANY_CPU },
        }
    }

    fn queue(places: &[(u32, bool, Position)]) -> Queue<Number> {
        let mut queue = Queue::new();
        queue.reserve(places.len()).unwrap();
        for &(number, pinned, position) in places {
            queue.add(place(number, pinned), position);
        }
        queue
    }

    #[test]
    fn the_woken_come_first_then_the_interrupted() {
        let mut queue = queue(&[
            (1, false, Position::Back),
            (2, false, Position::Boosted),
            (3, false, Position::Front),
            (4, false, Position::Boosted),
            (5, false, Position::Back),
        ]);
        let order: Vec<_> = core::iter::from_fn(|| queue.next())
            .map(|place| place.vcpu.0)
            .collect();
        assert_eq!(order, [2, 4, 3, 1, 5]);
    }

    #[test]
    fn the_pinned_stay() {
        let mut queue = queue(&[
            (1, false, Position::Back),
            (2, true, Position::Back),
            (3, true, Position::Boosted),
            (4, false, Position::Boosted),
        ]);
        let given: Vec<_> = core::iter::from_fn(|| queue.give_away())
            .map(|place| place.vcpu.0)
            .collect();
        assert_eq!(given, [1, 4]);
        assert_eq!(queue.next().unwrap().vcpu, Number(3));
        assert_eq!(queue.next().unwrap().vcpu, Number(2));
        assert!(queue.is_empty());
    }

    #[test]
    fn anybody_can_be_taken_out() {
        let mut queue = queue(&[
            (1, false, Position::Back),
            (2, false, Position::Boosted),
            (3, false, Position::Back),
        ]);
        assert_eq!(queue.remove(&Number(2)), 2);
        assert_eq!(queue.remove(&Number(3)), 3);
        assert_eq!(queue.remove(&Number(7)), 0);
        assert_eq!(queue.next().unwrap().vcpu, Number(1));
        assert!(queue.is_empty());
    }
}
