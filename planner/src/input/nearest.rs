//! "Did you mean": the known word nearest to one that is not known, by edit distance (Damerau's four edits, each
//! letter in at most one swap).

/// More known words than these are not all listed.
const LISTED_MAX: usize = 24;

/// The hint for a word that none of `known` is: the nearest if it is near, else what there is.
pub(crate) fn did_you_mean(word: &str, known: &[&str]) -> String {
    match nearest(word, known) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("known here: {}", listed(known)),
    }
}

/// `a`, `b` and `c`.
pub(crate) fn listed(words: &[&str]) -> String {
    let mut quoted: Vec<String> = words.iter().take(LISTED_MAX).map(|word| format!("`{word}`")).collect();
    if words.len() > LISTED_MAX {
        quoted.push(format!("{} more", words.len() - LISTED_MAX));
    }
    match quoted.split_last() {
        None => "nothing".into(),
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} and {last}", rest.join(", ")),
    }
}

/// The first of the nearest, if no more than a third of the letters (at least one, rounded up) differ.
pub(super) fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let fold = |word: &str| word.to_lowercase().replace('_', "-");
    let (distance, near) =
        known.iter().map(|k| (distance(&fold(word), &fold(k)), *k)).min_by_key(|(d, _)| *d)?;
    (distance <= word.chars().count().max(near.chars().count()).div_ceil(3)).then_some(near)
}

/// Fewest insertions, deletions, replacements and swaps of neighbours from `a` to `b`.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut above: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 0..a.len() {
        let mut row = vec![i + 1];
        for j in 0..b.len() {
            let replace = last[j] + usize::from(a[i] != b[j]);
            let mut best = replace.min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && a[i] == b[j - 1] && a[i - 1] == b[j] {
                best = best.min(above[j - 1] + 1);
            }
            row.push(best);
        }
        above = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_edit_counts_once() {
        for (a, b, edits) in [
            ("nodes", "nodes", 0),
            ("node", "nodes", 1),
            ("ndoes", "nodes", 1),
            ("nods", "notes", 2),
            ("", "abc", 3),
        ] {
            assert_eq!((distance(a, b), distance(b, a)), (edits, edits), "{a} {b}");
        }
    }

    #[test]
    fn a_near_word_is_suggested_and_far_ones_are_listed() {
        let known = ["gpu", "gpus", "nodes", "micro_batch"];
        assert_eq!(did_you_mean("noeds", &known), "did you mean `nodes`?");
        assert_eq!(did_you_mean("micro-batch", &known), "did you mean `micro_batch`?");
        assert_eq!(did_you_mean("GPUs", &known), "did you mean `gpus`?");
        assert_eq!(did_you_mean("colour", &known), "known here: `gpu`, `gpus`, `nodes` and `micro_batch`");
        assert_eq!(did_you_mean("x", &[]), "known here: nothing");
        assert!(did_you_mean("x", &["abcd"; 100]).ends_with("`abcd` and 76 more"));
    }
}
