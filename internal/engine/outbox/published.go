package outbox

import (
	"slices"
	"sync"

	"github.com/millracehq/millrace/internal/engine/postgres"
)

// Partitions describes the partitions of table published_messages, which records
// published messages that are not consumed here. No inbox has them, so without the
// record they would be missing from their conversations. The statement that deletes
// them from the outbox also writes the record, at no extra cost for messages that are
// consumed here.
var Partitions = postgres.DailyPartitions{Table: "published_messages"}

// Statements that delete confirmed rows.
const (
	deleteConfirmed = `DELETE FROM outbox WHERE seq = ANY($1) AND available_at IS NULL`
	moveConfirmed   = `
		WITH gone AS (` + deleteConfirmed + ` RETURNING topic, message_id, correlation_id, causation_id)
		INSERT INTO published_messages (topic, message_id, correlation_id, causation_id)
		SELECT topic, message_id, correlation_id, causation_id FROM gone WHERE topic = ANY($2)`
)

// unconsumed tracks which confirmed rows must be recorded.
type unconsumed struct {
	topics []string

	mu   sync.Mutex
	rows map[int64]struct{}
}

// add tracks a row that is about to be confirmed.
func (u *unconsumed) add(r row) {
	if !slices.Contains(u.topics, r.Topic) {
		return
	}

	u.mu.Lock()
	defer u.mu.Unlock()

	if u.rows == nil {
		u.rows = map[int64]struct{}{}
	}

	u.rows[r.Seq] = struct{}{}
}

// deletion returns the statement that deletes confirmed rows.
func (u *unconsumed) deletion(confirmed []int64) (sql string, args []any) {
	u.mu.Lock()
	defer u.mu.Unlock()

	if len(u.rows) > 0 && slices.ContainsFunc(confirmed, func(seq int64) bool { _, found := u.rows[seq]; return found }) {
		return moveConfirmed, []any{confirmed, u.topics}
	}

	return deleteConfirmed, []any{confirmed}
}

// deleted stops tracking rows that have left the table.
func (u *unconsumed) deleted(confirmed []int64) {
	u.mu.Lock()
	defer u.mu.Unlock()

	if len(u.rows) == 0 {
		return
	}

	for _, seq := range confirmed {
		delete(u.rows, seq)
	}
}
