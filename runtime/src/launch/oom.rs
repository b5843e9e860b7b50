//! How often the kernel has killed for want of memory: what tells an out-of-memory SIGKILL from one sent by hand.
//!
//! The count of this process's own memory cgroup (v2 `memory.events`, v1 `memory.oom_control`) where there is one, else
//! the whole machine's (`/proc/vmstat`), which other people's programs raise too. All three hold a line `oom_kill N`.

use std::fs;
use std::path::PathBuf;

/// Kills so far; `None` where the kernel does not tell.
pub(super) fn kills() -> Option<u64> {
    let cgroups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let counters = counter_files(&cgroups).into_iter().chain([PathBuf::from("/proc/vmstat")]);
    counters.filter_map(|path| fs::read_to_string(path).ok()).find_map(|text| count(&text))
}

/// Candidates out of the text of /proc/self/cgroup (`id:controllers:path`); in a container the own group is the root.
fn counter_files(cgroups: &str) -> Vec<PathBuf> {
    let entries = cgroups.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        Some((fields.next()?, fields.next()?))
    });
    let files = entries.filter_map(|(controllers, path)| match controllers {
        "" => Some(("/sys/fs/cgroup", path, "memory.events")),
        "memory" => Some(("/sys/fs/cgroup/memory", path, "memory.oom_control")),
        _ => None,
    });
    files
        .flat_map(|(root, path, file)| [format!("{root}{path}/{file}"), format!("{root}/{file}")])
        .map(PathBuf::from)
        .collect()
}

fn count(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")).and_then(|n| n.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_found_in_each_kind_of_file() {
        assert_eq!(count("low 0\nhigh 0\nmax 7\noom 2\noom_kill 1\noom_group_kill 0\n"), Some(1));
        assert_eq!(count("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"), Some(3));
        assert_eq!(count("oom_kill_disable 0\nunder_oom 0\n"), None);
    }

    #[test]
    fn the_own_group_comes_before_the_root() {
        let v2 = counter_files("0::/user.slice/a\n");
        assert_eq!(v2[0], PathBuf::from("/sys/fs/cgroup/user.slice/a/memory.events"));
        let v1 = counter_files("4:memory:/x\n3:cpuset:/\n");
        assert_eq!(v1[0], PathBuf::from("/sys/fs/cgroup/memory/x/memory.oom_control"));
        assert_eq!(v1.len(), 2);
    }
}
