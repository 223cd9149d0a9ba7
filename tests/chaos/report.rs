//! What happened, as a table: faults, deliveries, what was lost, and why webhooks came twice.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::faults::Kind;
use super::verdict::Verdict;

/// Of one run, or of many.
#[derive(Default)]
pub struct Report {
    pub runs: usize,
    /// Of which with gentle faults only.
    pub gentle: usize,
    pub processes: u32,
    pub faults: BTreeMap<Kind, usize>,
    pub verdict: Verdict,
    pub longest_stop: Duration,
    /// From the end of the faults until nothing was owed any more.
    pub longest_recovery: Duration,
}

impl Report {
    pub fn add(&mut self, other: Self) {
        self.runs += other.runs;
        self.gentle += other.gentle;
        self.processes += other.processes;
        merge(&mut self.faults, other.faults);
        let (sum, one) = (&mut self.verdict, other.verdict);
        sum.owed += one.owed;
        sum.delivered += one.delivered;
        sum.superseded += one.superseded;
        sum.transitions += one.transitions;
        sum.settlements += one.settlements;
        sum.posts += one.posts;
        merge(&mut sum.dead, one.dead);
        merge(&mut sum.duplicates, one.duplicates);
        sum.broken.extend(one.broken);
        self.longest_stop = self.longest_stop.max(other.longest_stop);
        self.longest_recovery = self.longest_recovery.max(other.longest_recovery);
    }

    fn of(&self, word: &str) -> usize {
        self.verdict.broken.iter().filter(|complaint| complaint.contains(word)).count()
    }
}

fn merge<K: Ord>(sums: &mut BTreeMap<K, usize>, more: BTreeMap<K, usize>) {
    for (key, count) in more {
        *sums.entry(key).or_default() += count;
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = &self.verdict;
        let mut line = |name: &str, value: String| writeln!(f, "{name:<58} {value:>10}");
        line("runs", format!("{} ({} gentle)", self.runs, self.gentle))?;
        line("daemon processes", self.processes.to_string())?;
        line("webhooks owed", verdict.owed.to_string())?;
        line("  delivered", verdict.delivered.to_string())?;
        line("  superseded", verdict.superseded.to_string())?;
        for (reason, count) in &verdict.dead {
            line(&format!("  dead letter: {reason}"), count.to_string())?;
        }
        line("lost", self.of("LOST").to_string())?;
        line("phantom", self.of("PHANTOM").to_string())?;
        line("anything else that must not be", {
            let named = self.of("LOST") + self.of("PHANTOM");
            (verdict.broken.len() - named).to_string()
        })?;
        line("transitions, each once in the journal", verdict.transitions.to_string())?;
        line("settlements, each under its own lease", verdict.settlements.to_string())?;
        line("POSTs", verdict.posts.to_string())?;
        line("  after their webhook was accepted", verdict.duplicates.values().sum::<usize>().to_string())?;
        for (why, count) in &verdict.duplicates {
            line(&format!("    {why}"), count.to_string())?;
        }
        line("longest stop after SIGTERM", format!("{:.1} s", self.longest_stop.as_secs_f64()))?;
        line(
            "longest recovery after the last fault",
            format!("{:.1} s", self.longest_recovery.as_secs_f64()),
        )?;
        line("faults", self.faults.values().sum::<usize>().to_string())?;
        for (kind, count) in &self.faults {
            line(&format!("  {kind:?}"), count.to_string())?;
        }
        for complaint in verdict.broken.iter().take(40) {
            writeln!(f, "BROKEN: {complaint}")?;
        }
        Ok(())
    }
}
