package outbox

import (
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/millracehq/millrace/internal/engine/event"
)

// row is a message that was read from the table.
type row struct {
	Seq         int64
	Shard       int16
	Topic       string
	Key         string
	ID          uuid.UUID
	Correlation uuid.UUID
	Causation   *uuid.UUID
	Headers     event.Headers
	Payload     []byte
	Trace       *string
	CreatedAt   time.Time
}

// queue hands rows to concurrent lanes so that a key's rows go out one after
// the other, in order, and different keys go out at once.
type queue struct {
	mu       sync.Mutex
	nonEmpty *sync.Cond
	// keys holds the unpublished rows of each key; its first row may be in
	// the hands of a lane.
	keys map[string][]row
	// ready lists the keys whose first row no lane has and that are not held.
	ready []string
	// inFlight has every row that was read and is not deleted yet.
	inFlight map[int64]struct{}
	// confirmed are rows in flight that the broker has and the table still has.
	confirmed []int64
	// failures counts, for each key that is held, how often its first row
	// failed in a row. Rows behind it stay in the table alone.
	failures map[string]int
	// forgotten counts how often rows were given back to the table while a
	// read may have been under way, which then misses them; see push.
	forgotten int
	// busy counts the rows that lanes are publishing.
	busy   int
	closed bool
}

func newQueue() *queue {
	q := &queue{keys: make(map[string][]row), inFlight: make(map[int64]struct{}), failures: make(map[string]int)}
	q.nonEmpty = sync.NewCond(&q.mu)

	return q
}

// push adds rows, which come in order of sequence, from a read that began when
// as much was forgotten. If more is by now, the rows are left in the table: they
// may follow on others of their key that the read did not find. kept is false
// when any row was left in the table.
func (q *queue) push(rows []row, forgotten int) (kept bool) {
	q.mu.Lock()
	defer q.mu.Unlock()

	if forgotten != q.forgotten {
		return false
	}

	kept = true

	for _, r := range rows {
		if q.failures[r.Key] > 0 {
			kept = false

			continue
		}

		q.inFlight[r.Seq] = struct{}{}

		if len(q.keys[r.Key]) == 0 {
			q.ready = append(q.ready, r.Key)
		}

		q.keys[r.Key] = append(q.keys[r.Key], r)
	}

	q.nonEmpty.Broadcast()

	return kept
}

// next waits for a row to publish; ok is false once the queue is closed.
func (q *queue) next() (r row, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()

	for len(q.ready) == 0 && !q.closed {
		q.nonEmpty.Wait()
	}

	if q.closed {
		return row{}, false
	}

	key := q.ready[0]
	q.ready = q.ready[1:]
	q.busy++

	return q.keys[key][0], true
}

// published marks r as confirmed by the broker and frees its key. It reports
// whether the relay has something to do: many rows to delete, a key that was
// held, or nothing else to wait for. Deleting one by one would cost more than
// publishing.
func (q *queue) published(r row, batch int) (due bool) {
	q.mu.Lock()
	defer q.mu.Unlock()

	held := q.failures[r.Key] > 0
	delete(q.failures, r.Key)

	q.busy--
	q.confirmed = append(q.confirmed, r.Seq)
	q.advance(r)

	return held || len(q.confirmed) >= batch || q.busy == 0 && (len(q.ready) == 0 || q.closed)
}

// advance makes the next row of a key ready, unless the key was dropped
// meanwhile.
func (q *queue) advance(done row) {
	rest := q.keys[done.Key]

	switch {
	case len(rest) == 0 || rest[0].Seq != done.Seq:
	case len(rest) == 1:
		delete(q.keys, done.Key)
	default:
		q.keys[done.Key] = rest[1:]
		q.ready = append(q.ready, done.Key)
		q.nonEmpty.Signal()
	}
}

// failed holds the key of r back and returns for how long, and whether that is
// as long as it gets for the first time; release then offers it to the lanes
// again. What is behind r goes back to the table, so that a key
// takes up one place however much waits for it.
func (q *queue) failed(r row) (hold time.Duration, stuck bool) {
	q.mu.Lock()
	defer q.mu.Unlock()

	q.busy--
	q.failures[r.Key]++

	if rows := q.keys[r.Key]; len(rows) > 1 {
		q.forget(rows, false)
		q.forgotten++
	}

	failures := q.failures[r.Key]

	return min(maxHold, minHold<<min(failures-1, 10)), failures == stuckAfter
}

// giveBack returns r and what is behind it to the table: its topic is held.
func (q *queue) giveBack(r row) {
	q.mu.Lock()
	defer q.mu.Unlock()

	q.busy--
	delete(q.failures, r.Key)

	if rows := q.keys[r.Key]; len(rows) > 0 && rows[0].Seq == r.Seq {
		q.forget(rows, true)
	}

	q.forgotten++
}

// dropTopics returns the keys with rows of these topics to the table, but for
// those that a lane has in hand.
func (q *queue) dropTopics(topics []string) {
	q.mu.Lock()
	defer q.mu.Unlock()

	kept := q.ready[:0]

	for _, key := range q.ready {
		rows := q.keys[key]

		if slices.ContainsFunc(rows, func(r row) bool { return slices.Contains(topics, r.Topic) }) {
			q.forget(rows, true)
			delete(q.failures, key)
		} else {
			kept = append(kept, key)
		}
	}

	q.ready = kept
	q.forgotten++
}

// release lets a held key go on, if its row is still there.
func (q *queue) release(r row) {
	q.mu.Lock()
	defer q.mu.Unlock()

	if rest := q.keys[r.Key]; len(rest) > 0 && rest[0].Seq == r.Seq {
		q.ready = append(q.ready, r.Key)
		q.nonEmpty.Signal()
	}
}

// takeConfirmed returns the rows to delete.
func (q *queue) takeConfirmed() []int64 {
	q.mu.Lock()
	defer q.mu.Unlock()

	confirmed := q.confirmed
	q.confirmed = nil

	return confirmed
}

// want is what to read next.
type want struct {
	// limit is how many rows, not above 0 if none.
	limit int
	// inFlight are rows, held are keys that are not to be read.
	inFlight []int64
	held     []string
	// forgotten goes to push with the rows.
	forgotten int
}

// wants returns what to read next, at most batch rows. While as many keys wait
// for the lanes that is nothing: reading passes over every row in flight, so it
// pays to do it seldom.
func (q *queue) wants(batch, maxInFlight int) want {
	q.mu.Lock()
	defer q.mu.Unlock()

	if len(q.ready) >= batch {
		return want{}
	}

	return want{
		limit: min(batch, maxInFlight-len(q.inFlight)),
		// Empty, not nil: nothing is unequal to all of NULL.
		inFlight:  slices.AppendSeq(make([]int64, 0, len(q.inFlight)), maps.Keys(q.inFlight)),
		held:      slices.AppendSeq([]string{}, maps.Keys(q.failures)),
		forgotten: q.forgotten,
	}
}

// deleted forgets rows that have left the table.
func (q *queue) deleted(seqs []int64) {
	q.mu.Lock()
	defer q.mu.Unlock()

	for _, seq := range seqs {
		delete(q.inFlight, seq)
	}
}

// restore gives rows back to takeConfirmed after a failed deletion.
func (q *queue) restore(confirmed []int64) {
	q.mu.Lock()
	defer q.mu.Unlock()

	q.confirmed = append(q.confirmed, confirmed...)
}

// drop forgets the rows that keep refuses and no lane has in hand: another
// replica may publish them now.
func (q *queue) drop(keep func(shard int16) bool) {
	q.mu.Lock()
	defer q.mu.Unlock()

	ready := make(map[string]bool, len(q.ready))
	for _, key := range q.ready {
		ready[key] = true
	}

	q.ready = q.ready[:0]

	for key, rows := range q.keys {
		switch {
		case keep(rows[0].Shard):
			if ready[key] {
				q.ready = append(q.ready, key)
			}
		default:
			q.forget(rows, ready[key])
			delete(q.failures, key)
		}
	}
}

// forget removes the rows of a key. The first stays in flight while a lane has
// it or it is held, so that its confirmation is not mistaken.
func (q *queue) forget(rows []row, wholly bool) {
	key := rows[0].Key
	if wholly {
		delete(q.keys, key)
	} else {
		q.keys[key] = rows[:1]
		rows = rows[1:]
	}

	for _, r := range rows {
		delete(q.inFlight, r.Seq)
	}
}

// idle reports whether no lane is publishing.
func (q *queue) idle() bool {
	q.mu.Lock()
	defer q.mu.Unlock()

	return q.busy == 0
}

// close ends the lanes once they have finished what they hold.
func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()

	q.closed = true
	q.nonEmpty.Broadcast()
}
