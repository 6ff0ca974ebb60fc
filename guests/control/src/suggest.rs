//! What somebody may have meant who typed a word that is not known.

use alloc::vec::Vec;

/// The word of `known` that is nearest to `word`, if it is near enough to have been meant.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (word.chars().count() / 3).max(1);
    known
        .into_iter()
        .map(|candidate| (distance(word, candidate), candidate))
        .filter(|&(distance, _)| distance <= limit)
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, candidate)| candidate)
}

/// How many letters to insert, delete, replace, or swap with their neighbour, make one word of the other (optimal string
/// alignment).
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    // Three rows of the table: two back, one back, and the one that is made.
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=to.len()).collect();
    let mut previous = None;
    for (row, letter) in from.chars().enumerate() {
        let mut next = alloc::vec![row + 1];
        for (column, &other) in to.iter().enumerate() {
            let at =
                |cells: &[usize], index: usize| cells.get(index).copied().unwrap_or(usize::MAX / 2);
            let replaced = at(&last, column) + usize::from(letter != other);
            let mut best = replaced
                .min(at(&last, column + 1) + 1)
                .min(at(&next, column) + 1);
            if let Some(left) = column.checked_sub(1)
                && previous == Some(other)
                && to.get(left) == Some(&letter)
            {
                best = best.min(at(&before, left) + 1);
            }
            next.push(best);
        }
        before = core::mem::replace(&mut last, next);
        previous = Some(letter);
    }
    last.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_counted_in_letters() {
        for (from, to, steps) in [
            ("", "", 0),
            ("", "abc", 3),
            ("hello", "hello", 0),
            ("helo", "hello", 1),
            ("hlelo", "hello", 1),
            ("jello", "hello", 1),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(distance(from, to), steps, "{from} {to}");
            assert_eq!(distance(to, from), steps, "{to} {from}");
        }
    }

    #[test]
    fn only_what_is_near_is_suggested() {
        let known = ["hello", "spin", "help"];
        assert_eq!(nearest("helo", known), Some("hello"));
        assert_eq!(nearest("sipn", known), Some("spin"));
        assert_eq!(nearest("zzz", known), None);
        assert_eq!(nearest("", known), None);
    }
}
