//! The ranks as processes of this machine: spawn, reap, signal. Moves; decides nothing (`job` does).
//!
//! A rank is a process group: the process started, which leads it, and whatever that starts. The launcher is a
//! *subreaper* (prctl(2)), so a group's orphans become its children; waiting for a group by number then tells both when
//! its leader ended and when nobody is left (ECHILD). A group's number can be another's once it is empty, so an empty
//! one is never signalled again. Other children of this program are left to whoever waits for them.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{ChildStderr, ChildStdout, Command, ExitStatus, Stdio};

use rustix::io::Errno;
use rustix::process::{
    Pid, Signal, WaitOptions, WaitStatus, getpid, kill_process_group, set_child_subreaper, waitpgid,
};

use super::failure::Ending;
use super::job::{Input, Order};
use super::warden::Warden;
use super::{RankCommand, leash};

/// Where a rank's output comes from.
pub(super) type ChildOutput = (ChildStdout, ChildStderr);

/// The ranks of which something runs.
#[derive(Debug)]
pub(super) struct Crew {
    groups: Vec<Group>,
    warden: Warden,
}

#[derive(Debug)]
struct Group {
    rank: u32,
    /// Also the leader's process id.
    id: Pid,
    leader: Leader,
}

#[derive(Debug, PartialEq)]
enum Leader {
    Running,
    Ended,
}

impl Crew {
    pub fn new() -> Self {
        if let Err(error) = set_child_subreaper(Some(getpid())) {
            tracing::warn!(%error, "orphans of the ranks cannot be adopted; some may be overlooked");
        }
        Self { groups: Vec::new(), warden: Warden::post() }
    }

    /// Starts a rank on the calling thread, with which it will die. Gives its process id and its output.
    pub fn spawn(&mut self, rank: &RankCommand) -> io::Result<(i32, ChildOutput)> {
        let mut command = Command::new(&rank.program);
        command.args(&rank.args).envs(rank.env.iter().map(|(k, v)| (k, v)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        leash::tie(&mut command);
        let mut child = command.spawn()?;
        let id = Pid::from_child(&child);
        self.warden.watch(id);
        self.groups.push(Group { rank: rank.rank, id, leader: Leader::Running });
        let output = child.stdout.take().zip(child.stderr.take()).expect("both were asked to be pipes");
        Ok((id.as_raw_pid(), output))
    }

    /// What has ended since the last call, in rank order.
    pub fn reap(&mut self) -> Vec<Input> {
        let mut inputs = Vec::new();
        let warden = &mut self.warden;
        self.groups.retain_mut(|group| {
            let found = group.reap(&mut inputs);
            if found == Found::Nobody {
                warden.forget(group.id);
            }
            found == Found::Somebody
        });
        inputs
    }

    /// Signals every group that is not empty.
    pub fn signal(&self, order: Order) {
        let signal = match order {
            Order::Terminate => Signal::TERM,
            Order::Kill => Signal::KILL,
        };
        for group in &self.groups {
            match kill_process_group(group.id, signal) {
                // Gone since the last look; the next one will tell.
                Ok(()) | Err(Errno::SRCH) => {}
                Err(error) => tracing::warn!(rank = group.rank, %error, "cannot be signalled"),
            }
        }
    }

    /// After the last rank.
    pub fn dismiss(&mut self) {
        self.warden.dismiss();
    }
}

#[derive(Debug, PartialEq)]
enum Found {
    Somebody,
    Nobody,
}

impl Group {
    fn reap(&mut self, inputs: &mut Vec<Input>) -> Found {
        loop {
            match waitpgid(self.id, WaitOptions::NOHANG) {
                Ok(None) => return Found::Somebody,
                Ok(Some((pid, status))) if pid == self.id => self.leader_ended(ending(status), inputs),
                Ok(Some(_)) | Err(Errno::INTR) => {}
                // ECHILD: nobody is left. (No other error exists for these arguments.)
                Err(_) => {
                    if self.leader == Leader::Running {
                        self.leader_ended(Ending::Unknown, inputs);
                    }
                    inputs.push(Input::Emptied { rank: self.rank });
                    return Found::Nobody;
                }
            }
        }
    }

    fn leader_ended(&mut self, ending: Ending, inputs: &mut Vec<Input>) {
        self.leader = Leader::Ended;
        inputs.push(Input::Exited { rank: self.rank, ending });
    }
}

fn ending(status: WaitStatus) -> Ending {
    let status = ExitStatus::from_raw(status.as_raw());
    match (status.code(), status.signal()) {
        (Some(code), _) => Ending::Exit { code: code as u8 },
        (None, Some(number)) => Ending::Signal { number },
        (None, None) => Ending::Unknown,
    }
}
