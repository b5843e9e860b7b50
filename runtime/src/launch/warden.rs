//! Kills what the ranks have started when the launcher itself is killed.
//!
//! The death signal of `leash` reaches the ranks' own processes, not their children (`bash run.sh` -> python -> data
//! loaders). So a shell sits beside the launcher, reading the ranks' groups from a pipe; however the launcher ends, the
//! kernel closes the pipe, and the shell sends SIGKILL to every group that it was not told to forget.
//!
//! Lines: `watch GROUP`, `forget GROUP`. A group is forgotten as soon as it is empty: its number may then be another's.
//! Not here: signals while the launcher lives (`process`).

use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use rustix::process::Pid;

const SCRIPT: &str = r#"
trap '' HUP INT QUIT TERM
while read -r verb group; do
  kept=
  for g in $groups; do [ "$g" = "$group" ] || kept="$kept $g"; done
  case $verb in watch) groups="$kept $group" ;; forget) groups=$kept ;; esac
done
for g in $groups; do kill -KILL "-$g"; done
"#;

#[derive(Debug)]
pub(super) struct Warden(Option<Child>);

impl Warden {
    /// Without a shell the launcher goes on: only its own violent death would then leave processes behind.
    pub fn post() -> Self {
        let child = Command::new("/bin/sh")
            .args(["-c", SCRIPT, "narrows-warden"])
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn();
        Self(child.inspect_err(|error| tracing::warn!(%error, "no shell to guard the ranks' children")).ok())
    }

    pub fn watch(&mut self, group: Pid) {
        self.say("watch", group);
    }

    pub fn forget(&mut self, group: Pid) {
        self.say("forget", group);
    }

    /// Sends it home: for when no group is left. (A warden that is dropped instead kills what it watches.)
    pub fn dismiss(&mut self) {
        let Some(mut child) = self.0.take() else { return };
        let ended = child.kill().and_then(|()| child.wait());
        if let Err(error) = ended {
            tracing::warn!(%error, "the warden cannot be dismissed");
        }
    }

    fn say(&mut self, verb: &str, group: Pid) {
        let Some(stdin) = self.0.as_mut().and_then(|child| child.stdin.as_mut()) else { return };
        let said: io::Result<()> = stdin.write_all(format!("{verb} {group}\n").as_bytes());
        if let Err(error) = said {
            tracing::warn!(%error, "the warden is gone");
            self.0 = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    fn sleeper() -> (Child, Pid) {
        let child = Command::new("sleep").arg("30").process_group(0).spawn().expect("sleep runs");
        let group = Pid::from_child(&child);
        (child, group)
    }

    #[test]
    fn a_dropped_warden_kills_the_groups_it_watches_and_spares_the_forgotten() {
        let (mut watched, watched_group) = sleeper();
        let (mut forgotten, forgotten_group) = sleeper();
        let mut warden = Warden::post();
        warden.watch(forgotten_group);
        warden.watch(watched_group);
        warden.forget(forgotten_group);
        let mut shell = warden.0.take().expect("a shell was found");
        drop(shell.stdin.take());
        assert_eq!(watched.wait().expect("ours").signal(), Some(9));
        shell.wait().expect("ours");
        assert_eq!(forgotten.try_wait().expect("ours"), None, "still runs");
        forgotten.kill().expect("ours");
        forgotten.wait().expect("ours");
    }
}
