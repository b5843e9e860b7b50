//! Two flows joined by a wire in virtual time: what one says is told to the other at once, unless a test holds it back.

use super::*;
use crate::link::Tag;
use crate::link::frame::{Charge, HEADER_BYTES};
use proptest::prelude::*;

const WINDOW: u64 = 1_000;
const CHUNK: usize = 100;
const SIZES: Sizes = Sizes { window: WINDOW, peer_window: WINDOW, chunk: CHUNK };
const A: Tag = Tag(1);
const B: Tag = Tag(2);

/// A sends, B receives.
struct Pair {
    a: Flow,
    b: Flow,
    now_ns: u64,
}

impl Pair {
    fn new() -> Self {
        Pair { a: Flow::new(SIZES), b: Flow::new(SIZES), now_ns: 0 }
    }

    fn submit(&mut self, tag: Tag, message: Vec<u8>) -> Result<(), Bytes> {
        self.a.outgoing.submit(tag, message.into(), self.now_ns)
    }

    /// Carries frames both ways until neither side has anything to say. Returns the chunks that crossed.
    fn carry(&mut self) -> Vec<Chunk> {
        let mut crossed = Vec::new();
        loop {
            while let Next::Control(frame) = self.b.next(self.now_ns) {
                self.a.control(frame, self.now_ns).unwrap();
            }
            match self.a.next(self.now_ns) {
                Next::Control(frame) => self.b.control(frame, self.now_ns).unwrap(),
                Next::Chunk(departure) => {
                    land(&mut self.b, &departure.chunk, &departure.payload);
                    self.a.outgoing.written(0);
                    crossed.push(departure.chunk);
                }
                Next::Until(_) | Next::Idle => return crossed,
            }
            assert!(self.b.incoming.held_bytes() <= WINDOW);
        }
    }

    /// What a receive on `tag` finds after it has waited.
    fn receive(&mut self, tag: Tag) -> Option<Vec<u8>> {
        self.b.incoming.wait(tag);
        self.carry();
        let taken = self.b.incoming.take(tag, self.now_ns);
        self.b.incoming.leave(tag);
        match taken {
            Take::Whole { message, .. } => Some(message),
            _ => None,
        }
    }
}

fn land(flow: &mut Flow, chunk: &Chunk, payload: &[u8]) -> Landed {
    let mut buffer = flow.incoming.begin(chunk).unwrap();
    buffer.extend_from_slice(payload);
    flow.incoming.landed(chunk, buffer)
}

fn chunk(tag: Tag, serial: u64, message_bytes: u64, offset: u64, payload_bytes: u32) -> Chunk {
    Chunk { tag, serial, message_bytes, offset, payload_bytes, deliver_at_ns: 0, charge: Charge::Window }
}

#[test]
fn data_travels_before_it_is_asked_for_within_the_window() {
    let mut pair = Pair::new();
    pair.submit(A, vec![7; 250]).unwrap();
    assert_eq!(pair.carry().len(), 3);
    assert_eq!(pair.receive(A), Some(vec![7; 250]));
}

#[test]
fn a_sender_stops_when_nobody_takes() {
    let mut pair = Pair::new();
    let mut accepted = 0;
    while pair.submit(A, vec![0; 400]).is_ok() {
        accepted += 1;
        pair.carry();
    }
    // 400 B cost 456 in the queue; a chunk of 100 costs 156 in the window, which holds 6 (one message and a half).
    assert_eq!(accepted, 3);
    assert_eq!(pair.b.incoming.held_bytes(), 6 * 156);
    for _ in 0..3 {
        assert_eq!(pair.receive(A).map(|m| m.len()), Some(400));
    }
}

#[test]
fn empty_messages_are_not_free() {
    let mut pair = Pair::new();
    let mut accepted = 0;
    while pair.submit(A, Vec::new()).is_ok() {
        accepted += 1;
        pair.carry();
        assert!(accepted < 1000, "unbounded");
    }
    assert_eq!(accepted as u64, 2 * (WINDOW / HEADER_BYTES as u64));
}

#[test]
fn a_receive_gets_past_a_window_full_of_other_tags() {
    let mut pair = Pair::new();
    for _ in 0..2 {
        pair.submit(A, vec![1; 500]).unwrap();
        pair.carry();
    }
    pair.submit(B, vec![2; 300]).unwrap();
    pair.carry();
    assert_eq!(pair.receive(B), Some(vec![2; 300]));
    assert_eq!(pair.receive(A), Some(vec![1; 500]));
}

#[test]
fn a_receive_that_came_first_gets_past_a_full_window_too() {
    let mut pair = Pair::new();
    pair.b.incoming.wait(B);
    for _ in 0..2 {
        pair.submit(A, vec![1; 500]).unwrap();
        pair.carry();
    }
    pair.submit(B, vec![2; 20]).unwrap();
    pair.carry();
    assert!(matches!(pair.b.incoming.take(B, 0), Take::Whole { message, .. } if message == vec![2; 20]));
}

#[test]
fn a_message_longer_than_the_window_arrives_once_it_is_waited_for() {
    let mut pair = Pair::new();
    let message: Vec<u8> = (0..5_000u32).map(|i| i as u8).collect();
    pair.submit(A, message.clone()).unwrap();
    pair.carry();
    assert!(pair.b.incoming.held_bytes() > WINDOW - 156, "it fills the window first");
    assert_eq!(pair.receive(A), Some(message));
}

#[test]
fn a_long_message_that_is_waited_for_needs_no_grant() {
    let mut pair = Pair::new();
    pair.b.incoming.wait(A);
    pair.submit(A, vec![1; 5_000]).unwrap();
    assert!(pair.carry().iter().all(|chunk| chunk.charge == Charge::Window), "credit came back in time");
}

#[test]
fn a_full_queue_gives_the_message_back_and_an_empty_one_takes_any() {
    let mut pair = Pair::new();
    pair.submit(A, vec![0; 10_000]).unwrap();
    assert_eq!(pair.submit(A, vec![9; 10]), Err(Bytes::from(vec![9; 10])));
    assert_eq!(pair.a.outgoing.drained(0), Drained::No);
}

#[test]
fn a_message_counts_as_arrived_at_its_time_of_delivery() {
    let mut pair = Pair::new();
    land(&mut pair.b, &Chunk { deliver_at_ns: 50, ..chunk(A, 0, 2, 0, 1) }, &[1]);
    land(&mut pair.b, &Chunk { deliver_at_ns: 70, ..chunk(A, 0, 2, 1, 1) }, &[2]);
    assert!(matches!(pair.b.incoming.take(A, 69), Take::At(70)));
    assert!(matches!(pair.b.incoming.take(A, 70), Take::Whole { deliver_at_ns: 70, .. }));
}

fn departs(pair: &mut Pair) -> Departure {
    match pair.a.next(pair.now_ns) {
        Next::Chunk(departure) => departure,
        other => panic!("expected a chunk at {}, got {other:?}", pair.now_ns),
    }
}

#[test]
fn a_pump_that_wakes_late_does_not_shift_the_line() {
    let mut pair = Pair::new();
    pair.now_ns = 10;
    pair.submit(A, vec![0; 3 * CHUNK]).unwrap();
    pair.now_ns = 15;
    assert_eq!(departs(&mut pair).eligible_ns, 10, "since it was handed over");
    pair.a.outgoing.written(100);
    pair.now_ns = 99;
    assert!(matches!(pair.a.next(99), Next::Until(100)));
    pair.now_ns = 130;
    assert_eq!(departs(&mut pair).eligible_ns, 100, "since the line was free");
    pair.a.outgoing.written(200);
    pair.now_ns = 500;
    assert_eq!(departs(&mut pair).eligible_ns, 200);
    pair.a.outgoing.written(600);
    assert_eq!(pair.a.outgoing.drained(599), Drained::At(600));
    assert_eq!(pair.a.outgoing.drained(600), Drained::Yes);
}

#[test]
fn a_sender_that_was_out_of_credit_is_eligible_when_it_comes() {
    let mut pair = Pair::new();
    pair.submit(A, vec![0; 900]).unwrap();
    pair.carry();
    pair.now_ns = 777;
    pair.b.incoming.wait(A);
    while let Next::Control(frame) = pair.b.next(777) {
        pair.a.control(frame, 777).unwrap();
    }
    pair.now_ns = 900;
    assert_eq!(departs(&mut pair).eligible_ns, 777);
}

#[test]
fn control_frames_do_not_wait_for_the_line() {
    let mut pair = Pair::new();
    pair.submit(A, vec![0; 2 * CHUNK]).unwrap();
    departs(&mut pair);
    pair.a.outgoing.written(1_000);
    pair.a.incoming.wait(B);
    pair.a.control(Frame::Offer { tag: B, serial: 0, message_bytes: 5 }, 0).unwrap();
    assert!(matches!(pair.a.next(1), Next::Control(Frame::Grant { serial: 0 })));
}

#[test]
fn a_peer_that_breaks_the_rules_is_told_apart() {
    let offer = Frame::Offer { tag: A, serial: 4, message_bytes: 9 };
    let refused = |what: &str, play: &dyn Fn(&mut Flow) -> Result<(), Broken>| {
        let broken = play(&mut Flow::new(SIZES)).expect_err(what);
        assert!(broken.0.contains(what), "{} does not say {what}", broken.0);
    };
    let begin = |flow: &mut Flow, chunk: Chunk| flow.incoming.begin(&chunk).map(drop);
    refused("window of 1000 B", &|flow| begin(flow, chunk(A, 0, 2_000, 0, 2_000)));
    refused("chunk at 5, expected at 0", &|flow| begin(flow, chunk(A, 0, 9, 5, 4)));
    refused("was 9 B long and is 8 B", &|flow| {
        flow.control(offer, 0)?;
        begin(flow, chunk(A, 4, 8, 0, 1))
    });
    refused("starts after message 4", &|flow| {
        flow.control(offer, 0)?;
        begin(flow, chunk(A, 3, 9, 0, 1))
    });
    refused("chunk at 0, expected at 4", &|flow| {
        land(flow, &chunk(A, 0, 4, 0, 4), &[0; 4]);
        begin(flow, chunk(A, 0, 4, 0, 4))
    });
    refused("granted, which it is not", &|flow| {
        begin(flow, Chunk { charge: Charge::Granted, ..chunk(A, 0, 4, 0, 4) })
    });
    refused("offered twice", &|flow| {
        flow.control(offer, 0)?;
        flow.control(offer, 0)
    });
    refused("of a window of 1000 B", &|flow| flow.control(Frame::Credit { bytes: 1 }, 0));
    refused("messages offered at once", &|flow| {
        (0..2_000).try_for_each(|serial| flow.control(Frame::Offer { tag: A, serial, message_bytes: 0 }, 0))
    });
}

#[test]
fn the_first_cause_stands_unless_this_rank_aborts() {
    let mut flow = Flow::new(SIZES);
    flow.end(Cause::Closed);
    flow.end(Cause::PeerAborted { reason: "later".into() });
    assert!(matches!(flow.ended(), Some(Cause::Closed)));
    flow.end(Cause::Aborted { reason: "ours".into() });
    assert!(matches!(flow.ended(), Some(Cause::Aborted { .. })));
}

#[test]
fn a_buffer_that_was_given_back_is_landed_in_again() {
    let mut pair = Pair::new();
    let buffer = Vec::with_capacity(300);
    let address = buffer.as_ptr();
    pair.b.incoming.recycle(buffer);
    pair.submit(A, vec![1; 250]).unwrap();
    let message = pair.receive(A).unwrap();
    assert_eq!(message.as_ptr(), address);
}

#[test]
fn buffers_kept_for_reuse_are_bounded_by_the_window() {
    let mut pair = Pair::new();
    (0..10).for_each(|_| pair.b.incoming.recycle(Vec::with_capacity(300)));
    assert_eq!(pair.b.incoming.spare_bytes(), 900);
    let mut pair = Pair::new();
    (0..10).for_each(|_| pair.b.incoming.recycle(Vec::with_capacity(5_000)));
    assert_eq!(pair.b.incoming.spare_bytes(), 5_000, "one of any length");
}

#[derive(Debug, Clone)]
enum Move {
    Send(u64, usize),
    Carry,
    /// Receive the next message of the nth tag that still has one.
    Receive(usize),
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        4 => (0..4u64, prop_oneof![0..40usize, 0..2_500usize]).prop_map(|(tag, length)| Move::Send(tag, length)),
        1 => Just(Move::Carry),
        3 => (0..4usize).prop_map(Move::Receive),
    ];
    prop::collection::vec(one, 1..80)
}

proptest! {
    /// Against a model (a queue per tag): whatever the order of sends and receives, each receive of a message that was
    /// handed over finds it, in order, and the window holds (asserted in `carry`).
    #[test]
    fn every_receive_finds_its_message_whatever_lies_in_the_window(moves in moves()) {
        let mut pair = Pair::new();
        let mut model: Vec<std::collections::VecDeque<Vec<u8>>> = vec![Default::default(); 4];
        for (i, step) in moves.into_iter().enumerate() {
            match step {
                Move::Send(tag, length) => {
                    let message = vec![i as u8; length];
                    if pair.submit(Tag(tag), message.clone()).is_ok() {
                        model[tag as usize].push_back(message);
                    }
                }
                Move::Carry => drop(pair.carry()),
                Move::Receive(tag) => prop_assert_eq!(pair.receive(Tag(tag as u64)), model[tag].pop_front()),
            }
        }
        for (tag, messages) in model.iter_mut().enumerate() {
            while let Some(message) = messages.pop_front() {
                prop_assert_eq!(pair.receive(Tag(tag as u64)), Some(message));
            }
        }
        prop_assert_eq!(pair.b.incoming.inboxes(), 0, "nothing is remembered of tags that are done");
        prop_assert!(pair.b.incoming.held_bytes() < WINDOW / 4, "what was taken is paid back");
    }
}
