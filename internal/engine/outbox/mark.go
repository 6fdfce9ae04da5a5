package outbox

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// Intervals between marks.
const (
	// markEvery is the interval between marks while there are rows to read.
	markEvery = 200 * time.Millisecond
	// fullShare limits the cost of full reads: the next one starts after this many
	// times the duration of the last.
	fullShare = 20
)

// mark lets reads start near the first unread row. While a transaction stays open
// anywhere, the index keeps an entry for each row deleted since it began, and a read
// from the start scans all of them.
//
// It is not a cursor: if a row is found too late, a later row of its key overtakes
// it. So low is a sequence number below which no new row can appear: all transactions
// that were assigned such a number have ended, a read has found their rows, and the
// queue has accepted all of them. Reads start over when the queue returns rows, a key
// backs off or a topic is suspended.
type mark struct {
	low int64
	// returns is the value of queue.returns when low became valid.
	returns int

	// high was assigned when transaction xid began. It becomes low once all
	// transactions up to xid have ended. 0 means no mark is pending.
	high, xid int64

	marked    time.Time
	fullAt    time.Time
	fullAfter time.Duration
	// full is true during a full read.
	full bool
}

// reset makes the next read a full read.
func (m *mark) reset() { *m = mark{marked: m.marked} }

// begin returns the sequence number that the next read starts after.
func (m *mark) begin(next want, suspended bool, atLeast time.Duration) int64 {
	if suspended || len(next.backingOff) > 0 || next.returns != m.returns {
		m.reset()
		m.returns = next.returns
	}

	// Scheduled rows become due with an old number. Their order does not matter, but
	// they must be found.
	m.full = m.low == 0 || time.Since(m.fullAt) >= max(atLeast, m.fullAfter)
	if m.full {
		m.fullAt = time.Now()

		return 0
	}

	return m.low
}

// end processes the result of a read. xmin is from a snapshot before the read. kept
// is true if the queue accepted all rows.
func (m *mark) end(next want, rows []row, xmin int64, kept bool) {
	if m.full {
		m.fullAfter = fullShare * time.Since(m.fullAt)
	}

	reached := !next.cut(rows) || rows[len(rows)-1].Seq >= m.high

	if m.high > 0 && xmin > m.xid && kept && reached {
		m.low, m.high = m.high, 0
	}
}

// take starts a new mark if one is due and none is pending. An idle relay starts
// none.
func (m *mark) take(ctx context.Context, conn *pgx.Conn) error {
	if m.high > 0 || time.Since(m.marked) < markEvery {
		return nil
	}

	m.marked = time.Now()

	ctx, cancel := context.WithTimeout(ctx, sessionTimeout)
	defer cancel()

	// Read the number before the transaction ID: a transaction with a number up to
	// this one already had its ID; see rows.insert.
	var high, xid int64

	if err := conn.QueryRow(ctx, `SELECT last_value FROM outbox_seq_seq`).Scan(&high); err != nil {
		return fmt.Errorf("reading the last number of the outbox: %w", err)
	}

	if err := conn.QueryRow(ctx, `SELECT pg_current_xact_id()::text::bigint`).Scan(&xid); err != nil {
		return fmt.Errorf("getting a transaction ID: %w", err)
	}

	m.high, m.xid = high, xid

	return nil
}
