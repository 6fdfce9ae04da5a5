package wire

import (
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/millracehq/millrace/internal/test/pgtest"
)

func id(n byte) uuid.UUID { return uuid.UUID{6: 0x40, 8: 0x80, 15: n} }

// A record below a committed offset must be in the inbox or a failed message. Otherwise
// the offset has passed it.
func TestAnOffsetThatPassesAMessageInHandIsFound(t *testing.T) {
	t.Parallel()

	db := pgtest.New(t)

	for _, sql := range []string{
		`INSERT INTO inbox (consumer, message_id, day, fingerprint) VALUES
			('account.create', '00000000-0000-4000-8000-000000000002', '1970-01-01', 1),
			('account.update', '00000000-0000-4000-8000-000000000003', '1970-01-01', 1)`,
		`INSERT INTO failed_messages (state, consumer, topic, key, message_id, fingerprint, origin, headers, payload, reason, deliveries)
		 VALUES ('stopped', 'account.update', 'user.updated', 'k', '00000000-0000-4000-8000-000000000004', 1, '', '{}', '', 'rejected', 1)`,
	} {
		if _, err := db.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}

	o := &Offsets{DB: db}
	at := Place{"user.updated", 2}

	if err := o.prove(t.Context(), at.Topic, []Record{{Place: at, Offset: 10, ID: id(3)}, {Place: at, Offset: 11, ID: id(4)}}); err != nil {
		t.Fatal(err)
	}

	if len(o.Passed) > 0 || o.Records != 2 {
		t.Errorf("%d records, passed %q", o.Records, o.Passed)
	}

	// The second was applied by another consumer only.
	if err := o.prove(t.Context(), at.Topic, []Record{{Place: at, Offset: 12, ID: id(9)}, {Place: at, Offset: 13, ID: id(2)}}); err != nil {
		t.Fatal(err)
	}

	if len(o.Passed) != 2 || !strings.HasPrefix(o.Passed[0], "user.updated/2@12 ") {
		t.Errorf("passed %q", o.Passed)
	}
}
