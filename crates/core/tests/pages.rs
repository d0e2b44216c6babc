//! Page bookkeeping against naive lists: every table is a plain list of values, and following the slots must give it.
use omnidecode_core::pages::{Moves, PagePool, PageTable};
use omnidecode_core::{PAGE, Token};
use proptest::prelude::*;

const PAGES: usize = 24;

#[derive(Clone, Debug)]
enum Op {
    Append(usize, usize, Token),
    Truncate(usize, usize),
    Fork(usize),
    Drop(usize),
    Over(usize, usize, usize),
    Start(usize),
    Reserve(usize, usize),
    Flush,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0..9usize, 1..50usize, 0..3u32).prop_map(|(s, n, t)| Op::Append(s, n, t)),
        2 => (0..9usize, 0..200usize).prop_map(|(s, n)| Op::Truncate(s, n)),
        3 => (0..9usize).prop_map(Op::Fork),
        2 => (0..9usize).prop_map(Op::Drop),
        2 => (0..9usize, 0..120usize, 1..40usize).prop_map(|(s, a, n)| Op::Over(s, a, n)),
        2 => (0..3usize).prop_map(Op::Start),
        1 => (0..9usize, 1..70usize).prop_map(|(s, n)| Op::Reserve(s, n)),
        1 => Just(Op::Flush),
    ]
}

/// What a row holds when it is a causal function of the tokens: the whole prefix, hashed.
fn pure(tokens: &[Token]) -> u64 {
    tokens.iter().fold(1, |h, &t| omnidecode_core::noise::pair(h, u64::from(t)))
}

struct World {
    pool: PagePool,
    store: Vec<u64>,
    tables: Vec<(PageTable, Vec<Token>, Vec<u64>, bool)>,
    block: usize,
}
impl World {
    fn perform(&mut self, moves: &mut Moves) {
        for (from, to) in moves.drain(..) {
            self.store[to as usize] = self.store[from as usize];
        }
    }
    fn append(&mut self, at: usize, count: usize, token: Token) {
        let mut moves = Moves::new();
        let (mut table, mut tokens, mut rows, dirty) = self.tables.swap_remove(at);
        tokens.extend((0..count as u32).map(|i| token + i % 2));
        if !dirty {
            table.adopt(&mut self.pool, &tokens, 0, self.block, &mut moves);
            self.perform(&mut moves);
        }
        let adopted = table.len();
        let need = table.need(&self.pool, tokens.len());
        let can = need <= self.pool.available();
        let did = table.grow(&mut self.pool, tokens.len(), &mut moves);
        assert_eq!(can, did, "`need` is exact");
        self.perform(&mut moves);
        if did {
            for i in table.len()..tokens.len() {
                self.store[table.slot(i) as usize] = pure(&tokens[..=i]);
            }
            table.advance(tokens.len());
            if !dirty {
                table.publish(&mut self.pool, &tokens, 0);
            }
        } else {
            tokens.truncate(adopted);
        }
        rows.extend((rows.len()..tokens.len()).map(|i| pure(&tokens[..=i])));
        self.tables.push((table, tokens, rows, dirty));
    }
    fn check(&self) {
        for (table, _, rows, _) in &self.tables {
            assert_eq!(table.len(), rows.len());
            for (place, want) in rows.iter().enumerate() {
                assert_eq!(self.store[table.slot(place) as usize], *want, "place {place}");
            }
        }
        let mut held: Vec<u32> = self.tables.iter().flat_map(|t| t.0.pages().iter().copied()).collect();
        held.sort_unstable();
        held.dedup();
        assert_eq!(self.pool.used(), held.len(), "pages in use are exactly those some table holds");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    #[test]
    fn like_naive_lists(ops in prop::collection::vec(op(), 1..60), block in prop::sample::select(&[1usize, 8, 32])) {
        let mut w = World { pool: PagePool::new(PAGES), store: vec![0; PAGES * PAGE], tables: Vec::new(), block };
        for op in ops {
            let n = w.tables.len();
            match op {
                Op::Start(family) => {
                    w.tables.push((PageTable::default(), Vec::new(), Vec::new(), false));
                    w.append(n, 40 + family, family as Token);
                }
                Op::Append(s, count, token) if n > 0 => w.append(s % n, count, token),
                Op::Truncate(s, len) if n > 0 => {
                    let t = &mut w.tables[s % n];
                    t.0.truncate(&mut w.pool, len);
                    t.1.truncate(len);
                    t.2.truncate(len);
                }
                Op::Fork(s) if n > 0 => {
                    let (table, tokens, rows, dirty) = &w.tables[s % n];
                    let twin = (table.fork(&mut w.pool), tokens.clone(), rows.clone(), *dirty);
                    w.tables.push(twin);
                }
                Op::Drop(s) if n > 0 => {
                    let mut t = w.tables.swap_remove(s % n);
                    t.0.truncate(&mut w.pool, 0);
                }
                Op::Over(s, at, count) if n > 0 => {
                    let mut moves = Moves::new();
                    let t = &mut w.tables[s % n];
                    let range = at..(at + count).min(t.0.len());
                    if range.start < range.end && t.0.own(&mut w.pool, range.clone(), &mut moves) {
                        t.3 = true;
                        for (from, to) in moves.drain(..) {
                            w.store[to as usize] = w.store[from as usize];
                        }
                        for i in range {
                            t.2[i] = 77 + i as u64;
                            w.store[t.0.slot(i) as usize] = t.2[i];
                        }
                    }
                }
                // A forward that is prepared and then given up.
                Op::Reserve(s, extra) if n > 0 => {
                    let mut moves = Moves::new();
                    let (mut t, pool) = (std::mem::take(&mut w.tables[s % n].0), &mut w.pool);
                    let len = t.len();
                    t.grow(pool, len + extra, &mut moves);
                    t.truncate(pool, len);
                    w.tables[s % n].0 = t;
                    w.perform(&mut moves);
                }
                Op::Flush => w.pool.flush(),
                _ => {}
            }
            w.check();
        }
        for mut t in w.tables.drain(..) {
            t.0.truncate(&mut w.pool, 0);
        }
        prop_assert_eq!(w.pool.used(), 0);
        w.pool.flush();
        prop_assert_eq!(w.pool.free(), PAGES);
    }
}

#[test]
fn prefixes_are_found_salted_and_forgotten_oldest_first() {
    let mut pool = PagePool::new(8);
    let mut moves = Moves::new();
    let tokens: Vec<Token> = (0..100).collect();
    let fill = |pool: &mut PagePool, moves: &mut Moves, tokens: &[Token], salt| {
        let mut t = PageTable::default();
        let hit = t.adopt(pool, tokens, salt, 1, moves);
        assert!(t.grow(pool, tokens.len(), moves));
        t.advance(tokens.len());
        t.publish(pool, tokens, salt);
        t.truncate(pool, 0);
        hit
    };
    assert_eq!(fill(&mut pool, &mut moves, &tokens, 0), 0);
    assert_eq!(fill(&mut pool, &mut moves, &tokens, 0), 96);
    assert_eq!(fill(&mut pool, &mut moves, &tokens, 1), 0, "another salt shares nothing");
    assert_eq!(fill(&mut pool, &mut moves, &tokens[..96], 0), 95, "one token is always left to run");
    assert_eq!(fill(&mut pool, &mut moves, &tokens, 0), 96);
    assert_eq!(pool.used(), 0);
    // Six pages are cached, two are free: four more give up two cached ones, the oldest chain from its end.
    let mut t = PageTable::default();
    assert!(t.grow(&mut pool, 4 * PAGE, &mut moves));
    assert_eq!(pool.available(), 4);
    let mut again = PageTable::default();
    assert_eq!(again.adopt(&mut pool, &tokens, 0, 1, &mut moves), 96, "the chain used last is whole");
    assert!(!PageTable::default().grow(&mut pool, 3 * PAGE, &mut moves), "one cached page alone is left to give");
    assert!(PageTable::default().grow(&mut pool, PAGE, &mut moves));
}

#[test]
fn what_part_of_a_page_has_in_common_is_copied() {
    let (mut pool, mut moves) = (PagePool::new(8), Moves::new());
    let tokens: Vec<Token> = (0..100).collect();
    let mut first = PageTable::default();
    assert!(first.grow(&mut pool, 96, &mut moves));
    first.advance(96);
    first.publish(&mut pool, &tokens[..96], 0);
    assert!(moves.is_empty());
    // Another text from place 50 on: a page is shared, and of the next 18 rows are copied.
    let mut other = tokens.clone();
    other[50] = 7;
    let mut mine = PageTable::default();
    assert_eq!(mine.adopt(&mut pool, &other, 0, 1, &mut moves), 50);
    let want: Vec<_> = (32..50).map(|place| (first.slot(place), mine.slot(place))).collect();
    assert_eq!(moves, want);
    assert!((mine.pages()[0] == first.pages()[0]) && (mine.pages()[1] != first.pages()[1]));
    assert_eq!((pool.copied_rows, pool.prefix_hits), (18, 2));
    // Rows of a block see each other: only whole blocks.
    for (block, gained) in [(4, 48), (16, 48), (32, 32)] {
        let mut table = PageTable::default();
        assert_eq!(table.adopt(&mut pool, &other, 0, block, &mut moves), gained, "blocks of {block}");
        table.truncate(&mut pool, 0);
    }
    // The page that is copied is not given up for its own copy: there is no copy.
    first.truncate(&mut pool, 0);
    let mut rest = PageTable::default();
    assert!(rest.grow(&mut pool, 4 * PAGE, &mut moves));
    let mut last = PageTable::default();
    assert_eq!((pool.free(), last.adopt(&mut pool, &other, 0, 1, &mut moves)), (0, 50), "the oldest page makes room");
    let mut none = PageTable::default();
    assert_eq!(none.adopt(&mut pool, &other, 0, 1, &mut moves), 32);
}

#[test]
fn a_page_that_is_copied_is_used() {
    let (mut pool, mut moves) = (PagePool::new(4), Moves::new());
    let texts: [Vec<Token>; 2] = [(0..33).collect(), (100..133).collect()];
    let run = |pool: &mut PagePool, moves: &mut Moves, tokens: &[Token]| {
        let mut table = PageTable::default();
        let gained = table.adopt(pool, tokens, 0, 1, moves);
        assert!(table.grow(pool, tokens.len(), moves));
        table.advance(tokens.len());
        table.publish(pool, tokens, 0);
        table.truncate(pool, 0);
        gained
    };
    assert_eq!(texts.each_ref().map(|text| run(&mut pool, &mut moves, text)), [0, 0]);
    // The older text's page is copied from; then room for one page is wanted: the other text's is given up.
    assert_eq!(run(&mut pool, &mut moves, &texts[0][..20]), 19);
    let mut room = PageTable::default();
    assert!(room.grow(&mut pool, 3 * PAGE, &mut moves));
    let mut again = PageTable::default();
    assert_eq!(again.adopt(&mut pool, &texts[0], 0, 1, &mut moves), 32);
    again.truncate(&mut pool, 0);
    room.truncate(&mut pool, 0);
    assert_eq!(run(&mut pool, &mut moves, &texts[1]), 0);
}
