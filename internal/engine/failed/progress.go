package failed

import (
	"context"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/postgres"
)

// Progress says what became of the messages that one request requeued or retried.
type Progress struct {
	Messages int `json:"messages"`
	Applied  int `json:"applied"`
	// Stopped counts messages that stopped again. Waiting counts messages that wait
	// because they failed again, or because a message that did so blocks them.
	Stopped int `json:"stopped"`
	Waiting int `json:"waiting"`
	// Withdrawn counts messages that were discarded or erased.
	Withdrawn int `json:"withdrawn"`
	// Untried counts messages that have not been tried yet.
	Untried int `json:"untried"`
	// Causes groups the stopped and waiting messages by cause, largest group first.
	Causes []CameBack `json:"causes"`
	// Consumers counts the untried messages by consumer.
	Consumers map[string]int `json:"-"`
}

// CameBack counts the messages that came back with the same cause.
type CameBack struct {
	// State is stopped or waiting.
	State    State  `json:"state"`
	Consumer string `json:"consumer"`
	Group    string `json:"group"`
	Cause    string `json:"cause"`
	Messages int    `json:"messages"`
}

// Progress returns what has become of the messages of a request. A message that was
// never stopped is deleted when it is applied, but the inbox still records it.
func (s *Store) Progress(ctx context.Context, request uuid.UUID) (p Progress, err error) {
	rows, err := postgres.Collect(ctx, s.pool, pgx.RowToStructByPos[CameBack], `
		WITH acted AS (
			SELECT entry_id AS id, min(acted_at) AS since, min(message_id::text)::uuid AS message_id, min(split_part(subject, ' ', 1)) AS consumer
			FROM operator_actions WHERE request_id = $1 AND action IN ('requeued', 'retried') AND entry_id IS NOT NULL GROUP BY 1
		), became AS (
			SELECT CASE
			           WHEN m.state IS NULL AND EXISTS (SELECT FROM inbox i WHERE i.consumer = a.consumer AND i.message_id = a.message_id) THEN 'applied'
			           WHEN m.state IS NULL THEN 'withdrawn'
			           WHEN m.state = 'resolved' THEN m.resolution
			           WHEN m.state = 'stopped' OR m.tried_at > a.since OR first.tried_at > a.since THEN m.state
			           ELSE 'untried' END AS state, a.consumer,
			       CASE WHEN m.state = 'stopped' OR m.tried_at > a.since THEN m.group_id ELSE first.group_id END AS group_id,
			       CASE WHEN m.state = 'stopped' OR m.tried_at > a.since THEN m.cause ELSE first.cause END AS cause
			FROM acted a LEFT JOIN failed_messages m ON m.id = a.id
			LEFT JOIN LATERAL (
				SELECT tried_at, group_id, cause FROM failed_messages f
				WHERE m.state = 'waiting' AND f.consumer = m.consumer AND f.failed_key = m.failed_key AND f.state = 'waiting' ORDER BY f.id LIMIT 1
			) AS first ON true
		)
		SELECT state, consumer, coalesce(CASE WHEN state IN ('stopped', 'waiting') THEN group_id END, '') AS group_id,
		       coalesce(CASE WHEN state IN ('stopped', 'waiting') THEN cause END, '') AS cause, count(*)
		FROM became GROUP BY 1, 2, 3, 4 ORDER BY 5 DESC, 1, 2, 3`, request)
	if err != nil {
		return p, fmt.Errorf("reading the outcome of request %s: %w", request, err)
	}

	p.Causes, p.Consumers = []CameBack{}, map[string]int{}

	for _, r := range rows {
		p.Messages += r.Messages

		switch r.State {
		case Stopped:
			p.Stopped += r.Messages
			p.Causes = append(p.Causes, r)
		case Waiting:
			p.Waiting += r.Messages
			p.Causes = append(p.Causes, r)
		case State(Applied):
			p.Applied += r.Messages
		case "untried":
			p.Untried += r.Messages
			p.Consumers[r.Consumer] += r.Messages
		default:
			p.Withdrawn += r.Messages
		}
	}

	return p, nil
}

// Reached returns the newest message that a request has requeued, or 0.
func (s *Store) Reached(ctx context.Context, request uuid.UUID) (id int64, err error) {
	err = s.pool.QueryRow(ctx, `
		SELECT coalesce(max(entry_id), 0) FROM operator_actions WHERE request_id = $1 AND action = 'requeued'`, request).Scan(&id)
	if err != nil {
		return 0, fmt.Errorf("reading how far request %s got: %w", request, err)
	}

	return id, nil
}
