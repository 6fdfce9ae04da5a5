package consumer

import (
	"slices"
	"testing"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/millracehq/millrace/internal/engine/inbox"
)

// TestEachPayloadThatIsBlockedIsStored: two messages with the same id and different
// payloads, which arrive together while their key waits, are different messages. The second
// must not be taken for a repeat of the first, because it would be acknowledged and lost.
func TestEachPayloadThatIsBlockedIsStored(t *testing.T) {
	t.Parallel()

	id := uuid.New()
	b := batches[int]{router: &Router{metrics: newMetrics(prometheus.NewRegistry())}, consumer: "writer"}

	var units []*unit[int]
	for _, fingerprint := range []int64{1, 2, 1} {
		units = append(units, &unit[int]{from: &delivery{id: id, stored: "a", claim: inbox.Entry{ID: id, Fingerprint: fingerprint}}})
	}

	var stored []int

	fresh, _, conflicts, err := b.fresh(units, []inbox.Verdict{inbox.Fresh, inbox.Conflict, inbox.Duplicate}, map[string]bool{"a": true},
		func(i int) (bool, error) {
			stored = append(stored, i)

			return true, nil
		})
	if err != nil || len(fresh) > 0 || len(conflicts) > 0 {
		t.Fatalf("applies %v, rejects %v, %v", fresh, conflicts, err)
	}

	if !slices.Equal(stored, []int{0, 1}) {
		t.Errorf("stores %v, expected the first of each payload", stored)
	}

	for i, u := range units {
		if !u.blocked {
			t.Errorf("unit %d is not blocked", i)
		}
	}
}
