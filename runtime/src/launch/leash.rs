//! Ties a child to this process: it leads a session of its own and dies, by SIGKILL, with the thread that started it.
//!
//! The session keeps the terminal's Ctrl-C away from the ranks (the launcher passes it on in its own way) and makes the
//! child's process group hold all that it starts. The death signal (prctl(2), PR_SET_PDEATHSIG) is lost over `fork` and
//! set-user-id `exec`, hence `warden` beside it.

#![allow(unsafe_code)] // pre_exec: code between fork and exec

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::io::Errno;
use rustix::process::{Signal, getpid, getppid, set_parent_process_death_signal, setsid};

/// Makes what `command` spawns lead a session and die with the calling thread.
pub(super) fn tie(command: &mut Command) {
    let launcher = getpid();
    let before_exec = move || {
        setsid()?;
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // The launcher may have died between fork and prctl; then no signal will come.
        if getppid() == Some(launcher) { Ok(()) } else { Err(io::Error::from(Errno::SRCH)) }
    };
    // SAFETY: in the forked child only async-signal-safe work is allowed; the closure makes three system calls through
    // rustix, which neither allocate nor lock, and builds an `io::Error` from a number.
    unsafe { command.pre_exec(before_exec) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_child_leads_its_session_and_has_the_death_signal() {
        let mut command = Command::new("sh");
        // Fields of /proc/PID/stat: pid (comm) state ppid pgrp session.
        command.args([
            "-c",
            "read -r pid comm state ppid group session rest < /proc/$$/stat; echo $pid $group $session",
        ]);
        tie(&mut command);
        let output = command.output().expect("sh runs");
        let text = String::from_utf8(output.stdout).expect("digits");
        let ids: Vec<_> = text.split_whitespace().collect();
        assert_eq!(ids.len(), 3, "{text}");
        assert!(ids.iter().all(|id| *id == ids[0]), "pid, group and session differ: {text}");
    }

    #[test]
    fn the_child_dies_with_the_thread_that_started_it() {
        let start = || {
            let mut command = Command::new("sleep");
            command.arg("30");
            tie(&mut command);
            command.spawn().expect("sleep runs")
        };
        let mut child = std::thread::spawn(start).join().expect("the thread ends well");
        let status = child.wait().expect("it is ours");
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(Signal::KILL.as_raw()));
    }
}
