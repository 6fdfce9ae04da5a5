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
	// fullShare bounds the cost of reading from the beginning: the next such read
	// comes after this many times the duration of the last.
	fullShare = 20
)

// mark lets reads begin where there may be something to find. While a transaction
// stays open anywhere, the index keeps an entry for each row that was deleted
// since it began, and a read from the beginning passes over all of them.
//
// It is not a cursor. A later row of a key would overtake a row that is found too
// late, so low is a sequence number up to which no row can appear any more: all
// transactions that were given such a number have ended, a read has found what
// they left, and the queue has all of it in hand. When the queue returns rows, a
// key backs off or a topic is suspended, reads begin at the beginning again.
type mark struct {
	low int64
	// returns is queue.returns when low became valid.
	returns int

	// high was assigned when transaction xid began: it becomes low when all
	// transactions up to xid have ended. 0 means none.
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
func (m *mark) begin(next want, suspended bool, atLeast time.Duration) int64 {
	if suspended || len(next.backingOff) > 0 || next.returns != m.returns {
		m.reset()
		m.returns = next.returns
	}

	// Scheduled rows come due with an old number. Their order among others does
	// not matter, but they must be found.
	m.full = m.low == 0 || time.Since(m.fullAt) >= max(atLeast, m.fullAfter)
	if m.full {
		m.fullAt = time.Now()

		return 0
	}

	return m.low
}

// end takes the result of a read into account. xmin is from a snapshot before that
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

// take starts a new mark, if it is time for one and none is under way. An idle
// relay starts none.
func (m *mark) take(ctx context.Context, conn *pgx.Conn) error {
	if m.high > 0 || time.Since(m.marked) < markEvery {
		return nil
	}

	m.marked = time.Now()

	ctx, cancel := context.WithTimeout(ctx, sessionTimeout)
	defer cancel()

	// First the number, then the transaction: a transaction with a number up to
	// this one had its id before; see rows.insert.
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
