package outbox

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// TestKeysThatBackOffTakeTheSpaceOfOthers shows a known limit: as many keys that fail as a
// relay may have in flight leave no space for others, until one of them is due again.
func TestKeysThatBackOffTakeTheSpaceOfOthers(t *testing.T) {
	t.Parallel()

	const batch, maxInFlight = 2, 4

	q := newQueue(1)

	for n := range maxInFlight {
		q.push([]row{{Seq: int64(n + 1), Key: fmt.Sprint(n)}}, q.returns)

		failed, _ := q.next()
		q.failed(failed[0])

		if next := q.wants(batch, maxInFlight); next.limit != min(batch, maxInFlight-n-1) {
			t.Fatalf("with %d keys backing off, %d rows are read", n+1, next.limit)
		}
	}

	q.release("0")

	if next := q.wants(batch, maxInFlight); next.limit != 1 {
		t.Errorf("after one key's wait, %d rows are read", next.limit)
	}
}

// rowsOf returns rows of a key with these sequence numbers.
func rowsOf(key string, seqs ...int64) (rows []row) {
	for _, seq := range seqs {
		rows = append(rows, row{Seq: seq, Key: key, Payload: []byte("{}")})
	}

	return rows
}

func seqsOf(rows []row) (seqs []int64) {
	for _, r := range rows {
		seqs = append(seqs, r.Seq)
	}

	return seqs
}

// expectRun takes the next run and compares it.
func expectRun(t *testing.T, q *queue, want ...int64) []row {
	t.Helper()

	rows, _ := q.next()
	if got := seqsOf(rows); !slices.Equal(got, want) {
		t.Fatalf("took %v, expected %v", got, want)
	}

	return rows
}

func TestARunHasTheNextRowsOfAKey(t *testing.T) {
	t.Parallel()

	q := newQueue(3)
	q.push(slices.Concat(rowsOf("a", 1, 2), rowsOf("b", 3), rowsOf("a", 4, 5)), q.returns)

	first := expectRun(t, q, 1, 2, 4)
	expectRun(t, q, 3)

	if q.published(first, 100); len(q.confirmed) != 3 {
		t.Errorf("confirmed %v", q.confirmed)
	}

	q.published(expectRun(t, q, 5), 100)

	if q.bytes != len("{}") || len(q.keys) != 1 { // row 3
		t.Errorf("left are %d bytes of %v", q.bytes, q.keys)
	}
}

func TestARunIsSmall(t *testing.T) {
	t.Parallel()

	q := newQueue(3)
	rows := rowsOf("a", 1, 2, 3)
	rows[0].Payload, rows[1].Payload = make([]byte, maxRunBytes+1), make([]byte, maxRunBytes)
	q.push(rows, q.returns)

	q.published(expectRun(t, q, 1), 100)
	expectRun(t, q, 2)
}

func TestTheRowsOfARunThatFailedAreTakenOneByOne(t *testing.T) {
	t.Parallel()

	q := newQueue(2)
	q.push(rowsOf("a", 1, 2, 3, 4, 5), q.returns)

	q.split(expectRun(t, q, 1, 2))
	q.published(expectRun(t, q, 1), 100)

	// Row 2 fails: the key backs off and is read again.
	q.failed(expectRun(t, q, 2)[0])
	q.release("a")
	q.push(rowsOf("a", 2), q.returns)
	q.published(expectRun(t, q, 2), 100)

	q.push(rowsOf("a", 3, 4, 5), q.returns)
	expectRun(t, q, 3, 4)
}

// TestConfirmedRowsWaitForTheNextRound: reading new rows deletes those that are confirmed, so
// an idle relay starts no round for them alone until there are many.
func TestConfirmedRowsWaitForTheNextRound(t *testing.T) {
	t.Parallel()

	q := newQueue(1)
	q.push(slices.Concat(rowsOf("a", 1), rowsOf("b", 2), rowsOf("c", 3)), q.returns)

	if q.hasConfirmed() {
		t.Error("nothing has been published")
	}

	if q.published(expectRun(t, q, 1), 2) {
		t.Error("one confirmed row starts a round")
	}

	if !q.hasConfirmed() {
		t.Error("the confirmed row is forgotten")
	}

	if !q.published(expectRun(t, q, 2), 2) {
		t.Error("a batch of confirmed rows starts no round")
	}

	last := expectRun(t, q, 3)
	q.takeConfirmed()
	q.close()

	if !q.published(last, 2) {
		t.Error("a drain waits for the last row, and no round starts")
	}
}

// TestEachReadyKeyWakesALane: lanes wait for keys, and each key that becomes ready wakes one.
func TestEachReadyKeyWakesALane(t *testing.T) {
	t.Parallel()

	const keys = 20

	q := newQueue(1)
	taken := make(chan int64, 2*keys)

	for range 2 * keys {
		go func() {
			for {
				rows, ok := q.next()
				if !ok {
					return
				}

				taken <- rows[0].Seq

				q.published(rows, 100)
			}
		}()
	}

	defer q.close()

	for round := range 5 {
		var rows []row
		for key := range keys {
			seq := int64(2 * (round*keys + key))
			rows = append(rows, rowsOf(fmt.Sprint(key), seq, seq+1)...) // the second is ready after the first
		}

		q.push(rows, q.returns)

		for range 2 * keys {
			select {
			case <-taken:
			case <-time.After(time.Minute):
				t.Fatal("a ready key has woken no lane")
			}
		}
	}
}

// TestRowsInALaneStayInFlight: a relay that loses a shard keeps the rows that are being
// published, and returns the others to the table.
func TestRowsInALaneStayInFlight(t *testing.T) {
	t.Parallel()

	q := newQueue(2)
	q.push(rowsOf("a", 1, 2, 3), q.returns)

	run := expectRun(t, q, 1, 2)
	q.drop(func(int16) bool { return false })

	if !q.has(1) || !q.has(2) || q.has(3) {
		t.Errorf("in flight are %v", q.inFlight)
	}

	q.published(run, 100)

	if len(q.confirmed) != 2 || len(q.keys) != 0 || q.bytes != 0 || !q.idle() {
		t.Errorf("confirmed %v, left %v", q.confirmed, q.keys)
	}
}
