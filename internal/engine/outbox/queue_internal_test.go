package outbox

import (
	"fmt"
	"testing"
)

// TestKeysThatBackOffTakeTheSpaceOfOthers shows a known limit: as many keys that fail as a
// relay may have in flight leave no space for others, until one of them is due again.
func TestKeysThatBackOffTakeTheSpaceOfOthers(t *testing.T) {
	t.Parallel()

	const batch, maxInFlight = 2, 4

	q := newQueue()

	for n := range maxInFlight {
		q.push([]row{{Seq: int64(n + 1), Key: fmt.Sprint(n)}}, q.returns)

		failed, _ := q.next()
		q.failed(failed)

		if next := q.wants(batch, maxInFlight); next.limit != min(batch, maxInFlight-n-1) {
			t.Fatalf("with %d keys backing off, %d rows are read", n+1, next.limit)
		}
	}

	q.release("0")

	if next := q.wants(batch, maxInFlight); next.limit != 1 {
		t.Errorf("after one key's wait, %d rows are read", next.limit)
	}
}
