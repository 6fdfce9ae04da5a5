package outbox

import (
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/millrace/millrace/internal/event"
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
	// waiting counts the rows that no lane has.
	waiting int
	// failures counts how often the first row of a key failed in a row.
	failures map[string]int
	// busy counts the rows that lanes are publishing.
	busy   int
	closed bool
}

func newQueue() *queue {
	q := &queue{keys: make(map[string][]row), inFlight: make(map[int64]struct{}), failures: make(map[string]int)}
	q.nonEmpty = sync.NewCond(&q.mu)

	return q
}

// push adds rows, which come in order of sequence.
func (q *queue) push(rows []row) {
	q.mu.Lock()
	defer q.mu.Unlock()

	for _, r := range rows {
		if _, known := q.inFlight[r.Seq]; known {
			continue
		}

		q.inFlight[r.Seq] = struct{}{}

		if len(q.keys[r.Key]) == 0 {
			q.ready = append(q.ready, r.Key)
		}

		q.keys[r.Key] = append(q.keys[r.Key], r)
		q.waiting++
	}

	q.nonEmpty.Broadcast()
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
	q.waiting--

	return q.keys[key][0], true
}

// published marks r as confirmed by the broker and frees its key. It reports
// whether the relay has something to do: many rows to delete, or nothing else
// to wait for. Deleting one by one would cost more than publishing.
func (q *queue) published(r row, batch int) (due bool) {
	q.mu.Lock()
	defer q.mu.Unlock()

	defer func() {
		due = len(q.confirmed) >= batch || q.busy == 0 && (q.waiting == 0 || q.closed)
	}()

	q.busy--
	q.confirmed = append(q.confirmed, r.Seq)
	delete(q.failures, r.Key)

	rest := q.keys[r.Key]
	if len(rest) == 0 || rest[0].Seq != r.Seq {
		return due // the queue was cleared meanwhile
	}

	if len(rest) == 1 {
		delete(q.keys, r.Key)

		return due
	}

	q.keys[r.Key] = rest[1:]
	q.ready = append(q.ready, r.Key)
	q.nonEmpty.Signal()

	return due
}

// failed holds the key of r back and returns for how long; release then offers
// it to the lanes again.
func (q *queue) failed(r row) time.Duration {
	q.mu.Lock()
	defer q.mu.Unlock()

	q.busy--
	q.waiting++
	q.failures[r.Key]++

	return min(maxHold, minHold<<min(q.failures[r.Key]-1, 10))
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

// wants returns how many rows to read, at most batch, and which not to read
// again. While a batch waits for the lanes it wants none: reading passes over
// every row in flight, so it pays to do it seldom.
func (q *queue) wants(batch, maxInFlight int) (n int, inFlight []int64) {
	q.mu.Lock()
	defer q.mu.Unlock()

	if q.waiting >= batch {
		return 0, nil
	}

	inFlight = make([]int64, 0, len(q.inFlight))
	for seq := range q.inFlight {
		inFlight = append(inFlight, seq)
	}

	return min(batch, maxInFlight-len(inFlight)), inFlight
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

	q.waiting -= len(rows)
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
