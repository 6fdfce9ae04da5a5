package outbox

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// Pace of marks.
const (
	// markEvery is how often a mark is taken while there is something to read.
	markEvery = 200 * time.Millisecond
	// fullShare bounds what reading from the beginning costs: it is done again
	// after so many times as long as it took.
	fullShare = 20
)

// mark lets reads begin where there may be something to find. While a
// transaction is held open anywhere, the index keeps an entry for every row
// that was deleted since it began, and a read from the beginning passes over
// all of them.
//
// It is no cursor. A row that is found too late would let a later one of its
// key overtake it, so low is a sequence number up to which nothing can come any
// more: all transactions that were given such a number have ended, a read has
// found what they left, and the queue has all of it in hand. As soon as the
// queue gives anything back, or holds a key or a topic, reads begin at the
// beginning again.
type mark struct {
	low int64
	// forgotten is queue.forgotten when low began to hold.
	forgotten int

	// high was given out when transaction xid began: it becomes low when all
	// transactions up to xid have ended. 0 is none.
	high, xid int64

	marked    time.Time
	fullAt    time.Time
	fullAfter time.Duration
	// full is true while a read from the beginning is under way.
	full bool
}

// reset makes the next read begin at the beginning.
func (m *mark) reset() { *m = mark{marked: m.marked} }

// begin returns the sequence number after which the next read begins.
func (m *mark) begin(next want, held bool, atLeast time.Duration) int64 {
	if held || len(next.held) > 0 || next.forgotten != m.forgotten {
		m.reset()
		m.forgotten = next.forgotten
	}

	// Rows that were scheduled come due with an old number. They have no place
	// among others, but they want to be found.
	m.full = m.low == 0 || time.Since(m.fullAt) >= max(atLeast, m.fullAfter)
	if m.full {
		m.fullAt = time.Now()

		return 0
	}

	return m.low
}

// end takes what a read found into account. xmin is from a snapshot before that
// of the read; kept says that the queue took every row.
func (m *mark) end(next want, rows []row, xmin int64, kept bool) {
	if m.full {
		m.fullAfter = fullShare * time.Since(m.fullAt)
	}

	reached := len(rows) < next.limit || rows[len(rows)-1].Seq >= m.high

	if m.high > 0 && xmin > m.xid && kept && reached {
		m.low, m.high = m.high, 0
	}
}

// take takes a new mark, if it is time for one and none is under way. An idle
// relay takes none.
func (m *mark) take(ctx context.Context, conn *pgx.Conn) error {
	if m.high > 0 || time.Since(m.marked) < markEvery {
		return nil
	}

	m.marked = time.Now()

	ctx, cancel := context.WithTimeout(ctx, sessionTimeout)
	defer cancel()

	// First the number, then the transaction: whoever has a number up to this
	// one had its transaction's id before; see rows.insert.
	var high, xid int64

	if err := conn.QueryRow(ctx, `SELECT last_value FROM outbox_seq_seq`).Scan(&high); err != nil {
		return fmt.Errorf("reading the last number of the outbox: %w", err)
	}

	if err := conn.QueryRow(ctx, `SELECT pg_current_xact_id()::text::bigint`).Scan(&xid); err != nil {
		return fmt.Errorf("taking a transaction id: %w", err)
	}

	m.high, m.xid = high, xid

	return nil
}
