package consumer

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/millracehq/millrace/internal/engine/line"
)

// item is an item in a group, with key k.
type item struct {
	k     string
	n     int
	place *place
}

func (i item) key() string      { return i.k }
func (i item) standing() *place { return i.place }

func TestAGroupKeepsOrderPerKeyAndNeverRunsAKeyConcurrently(t *testing.T) {
	t.Parallel()

	rapid.Check(t, func(t *rapid.T) {
		var (
			watch = watcher{running: map[string]int{}, seen: map[string][]int{}}
			left  sync.WaitGroup
		)

		items := rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "c"}), 1, 60).Draw(t, "keys")
		maxBatch := rapid.IntRange(1, 8).Draw(t, "max batch")
		left.Add(len(items))

		g := newGroup(maxBatch, rapid.IntRange(1, 3).Draw(t, "runs"), newTurns(1), func(batch []item) []item {
			watch.begin(batch, maxBatch)
			watch.end(batch)
			left.Add(-len(batch))

			return nil
		})

		for n, key := range items {
			g.add(item{k: key, n: n})
		}

		left.Wait()

		for key, order := range watch.seen {
			if !slices.IsSorted(order) {
				t.Errorf("%s ran as %v", key, order)
			}
		}

		if len(watch.faults) > 0 {
			t.Fatal(watch.faults)
		}
	})
}

// watcher records which batches run, and everything that must not happen but did.
type watcher struct {
	mu      sync.Mutex
	running map[string]int
	seen    map[string][]int
	faults  []string
}

func itemKeys(batch []item) map[string]bool {
	keys := map[string]bool{}
	for _, i := range batch {
		keys[i.k] = true
	}

	return keys
}

func (w *watcher) begin(batch []item, maxBatch int) {
	w.mu.Lock()
	defer w.mu.Unlock()

	for key := range itemKeys(batch) {
		if w.running[key]++; w.running[key] > 1 {
			w.faults = append(w.faults, "concurrent runs of "+key)
		}
	}

	if len(batch) > maxBatch {
		w.faults = append(w.faults, fmt.Sprint("a batch of ", len(batch)))
	}
}

func (w *watcher) end(batch []item) {
	w.mu.Lock()
	defer w.mu.Unlock()

	for _, i := range batch {
		w.seen[i.k] = append(w.seen[i.k], i.n)
	}

	for key := range itemKeys(batch) {
		w.running[key]--
	}
}

func TestItemsThatArriveDuringARunShareABatch(t *testing.T) {
	t.Parallel()

	var (
		begun   = make(chan int)
		proceed = make(chan struct{})
	)

	g := newGroup(10, 1, newTurns(1), func(batch []item) []item {
		begun <- len(batch)

		<-proceed

		return nil
	})
	g.add(item{k: "0"})

	first := <-begun

	for n := range 5 {
		g.add(item{k: fmt.Sprint(n + 1)})
	}

	proceed <- struct{}{}

	if second := <-begun; first != 1 || second != 5 {
		t.Errorf("got batches of %d and %d, expected 1 and 5", first, second)
	}

	proceed <- struct{}{}
}

// TestAnotherBatchRunsOnlyWhileAFullOneWaits: two runs are allowed, and the first lasts.
func TestAnotherBatchRunsOnlyWhileAFullOneWaits(t *testing.T) {
	t.Parallel()

	synctest.Test(t, func(t *testing.T) {
		g, batches, proceed := heldGroup(3)

		add := func(numbers ...int) {
			for _, n := range numbers {
				g.add(item{k: fmt.Sprint(n), n: n})
			}
		}

		add(0)
		expectBatch(t, batches, []int{0})
		add(1, 2)
		expectBatch(t, batches, nil)
		add(3)
		expectBatch(t, batches, []int{1, 2, 3})
		add(4, 5, 6, 7)
		expectBatch(t, batches, nil) // no third run

		proceed <- struct{}{}

		expectBatch(t, batches, []int{4, 5, 6})

		proceed <- struct{}{}

		expectBatch(t, batches, nil) // 7 waits for the last run

		proceed <- struct{}{}

		expectBatch(t, batches, []int{7})

		proceed <- struct{}{}
	})
}

// heldGroup returns a group with up to two runs. Each sends the numbers of its items to
// batches, and then lasts until proceed.
func heldGroup(maxBatch int) (g *group[item], batches chan []int, proceed chan struct{}) {
	batches, proceed = make(chan []int, 10), make(chan struct{})

	return newGroup(maxBatch, 2, newTurns(2), func(batch []item) []item {
		var numbers []int
		for _, i := range batch {
			numbers = append(numbers, i.n)

			if i.place != nil {
				i.place.over.Store(true)
			}
		}
		batches <- numbers

		<-proceed

		return nil
	}), batches, proceed
}

// expectBatch expects the next batch, or none if want is nil.
func expectBatch(t *testing.T, batches <-chan []int, want []int) {
	t.Helper()
	synctest.Wait()

	select {
	case got := <-batches:
		if !slices.Equal(got, want) {
			t.Errorf("got a batch of %v, expected %v", got, want)
		}
	default:
		if want != nil {
			t.Errorf("got no batch, expected %v", want)
		}
	}
}

// TestItemsOfALineShareABatchInOrder: the order in which items joined the line counts,
// not the order in which they were added. An item that has not been added holds back those
// behind it.
func TestItemsOfALineShareABatchInOrder(t *testing.T) {
	t.Parallel()

	synctest.Test(t, func(t *testing.T) {
		g, batches, proceed := heldGroup(10)

		l := line.New(func() {})
		list := make([]item, 6)

		for n := range list {
			list[n] = item{k: "a", n: n, place: g.join(l)}
		}

		expect := func(want ...int) {
			t.Helper()
			expectBatch(t, batches, want)
		}

		g.add(list[1])
		expect()
		g.add(item{k: "b", n: 100})
		expect(100)

		for _, n := range []int{4, 2, 0, 5} {
			g.add(list[n])
		}

		proceed <- struct{}{}
		expect(0, 1, 2)
		proceed <- struct{}{}
		expect() // 3 is missing

		g.leave(list[3].place, false)
		expect(4, 5)
		proceed <- struct{}{}
	})
}

// scenario is a model of a consumer, and what becomes of its messages.
type scenario struct {
	t     *testing.T
	group *group[*modelled]

	mu sync.Mutex
	// settled lists, for each line, the numbers of the messages that were applied or parked.
	settled map[*line.Line][]int
}

// modelled is a message that fails a number of times and is then applied, parked or
// returned.
type modelled struct {
	place    *place
	k        string
	n        int
	line     *line.Line
	failures int
	fate     string
	done     chan bool
}

func (m *modelled) key() string      { return m.k }
func (m *modelled) standing() *place { return m.place }

// run applies a batch as an applier does: the first failed message of a line holds back
// those behind it.
func (s *scenario) run(batch []*modelled) (behind []*modelled) {
	time.Sleep(time.Millisecond)

	for _, m := range batch {
		switch {
		case m.place.broken():
			m.done <- false
		case !m.place.first():
			behind = append(behind, m)
		case m.failures > 0 || m.fate != "applied":
			m.failures--
			m.done <- false
		default:
			s.settle(m)
			m.place.over.Store(true)
			m.done <- true
		}
	}

	return behind
}

func (s *scenario) settle(m *modelled) {
	s.mu.Lock()
	defer s.mu.Unlock()

	s.settled[m.line] = append(s.settled[m.line], m.n)
}

// deliver takes a message through the consumer.
func (s *scenario) deliver(m *modelled, decode, store time.Duration) {
	time.Sleep(decode)

	ok := false

	for !ok && !m.place.broken() && (m.failures >= 0 || m.fate == "applied") {
		m.done = make(chan bool, 1)
		s.group.add(m)

		if ok = <-m.done; !ok {
			time.Sleep(store)
		}
	}

	if ok {
		s.group.leave(m.place, false)

		return
	}

	if m.fate == "parked" && !m.place.broken() {
		s.settle(m)
	} else {
		m.fate = "returned"
	}

	s.group.leave(m.place, m.fate == "returned")
}

// TestNoItemPassesOneAheadInItsLine plays random deliveries with random failures: the
// fates of messages are decided in line order, and no message after a returned one is
// applied.
func TestNoItemPassesOneAheadInItsLine(t *testing.T) {
	t.Parallel()

	rapid.Check(t, func(rt *rapid.T) {
		keys := rapid.SliceOfN(rapid.IntRange(0, 2), 1, 40).Draw(rt, "lines")
		fates := rapid.SliceOfN(rapid.SampledFrom([]string{"applied", "applied", "applied", "parked", "returned"}), len(keys), len(keys)).Draw(rt, "fates")
		failures := rapid.SliceOfN(rapid.IntRange(0, 2), len(keys), len(keys)).Draw(rt, "failures")
		takes := rapid.SliceOfN(rapid.IntRange(0, 5), 2*len(keys), 2*len(keys)).Draw(rt, "ms")
		maxBatch := rapid.IntRange(1, 8).Draw(rt, "max batch")
		runs := rapid.IntRange(1, 3).Draw(rt, "runs")

		synctest.Test(t, func(t *testing.T) {
			s := &scenario{t: t, settled: map[*line.Line][]int{}}
			s.group = newGroup(maxBatch, runs, newTurns(1), s.run)

			lines := make([]*line.Line, 3)
			for i := range lines {
				lines[i] = line.New(func() {})
			}

			var all sync.WaitGroup

			for n, key := range keys {
				m := &modelled{k: fmt.Sprint("key", key), n: n, line: lines[key], failures: failures[n], fate: fates[n]}
				m.place = s.group.join(m.line)

				all.Go(func() {
					s.deliver(m, time.Duration(takes[2*n])*time.Millisecond, time.Duration(takes[2*n+1])*time.Millisecond)
				})
			}

			all.Wait() // synctest reports a deadlock if nobody wakes a message
			synctest.Wait()

			for key, l := range lines {
				s.check(l, numbersOf(keys, key), fates)
			}
		})
	})
}

func numbersOf(keys []int, key int) (numbers []int) {
	for n := range keys {
		if keys[n] == key {
			numbers = append(numbers, n)
		}
	}

	return numbers
}

// check checks what became of a line's messages, which have the given numbers.
func (s *scenario) check(l *line.Line, numbers []int, fates []string) {
	want := numbers
	if returned := slices.IndexFunc(numbers, func(n int) bool { return fates[n] == "returned" }); returned >= 0 {
		want = numbers[:returned]
	}

	if got := s.settled[l]; !slices.Equal(got, want) {
		s.t.Errorf("applied or parked %v, expected %v, up to the first that is returned", got, want)
	}

	if len(s.group.last) > 0 || len(s.group.waiting) > 0 || len(s.group.busy) > 0 || s.group.runs > 0 {
		s.t.Errorf("%d lines, %d items, %d busy keys and %d runs are left", len(s.group.last), len(s.group.waiting), len(s.group.busy), s.group.runs)
	}
}
