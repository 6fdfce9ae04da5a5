package postgres

import (
	"context"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

// registerTypes makes a connection read times in UTC, whatever the zone of the
// machine, and send uuid.UUID as 16 bytes. By default pgx formats it as text and
// parses that, which is measurable with several IDs per message.
func registerTypes(_ context.Context, conn *pgx.Conn) error {
	m := conn.TypeMap()
	m.RegisterType(&pgtype.Type{Name: "timestamptz", OID: pgtype.TimestamptzOID, Codec: &pgtype.TimestamptzCodec{ScanLocation: time.UTC}})
	m.TryWrapEncodePlanFuncs = append([]pgtype.TryWrapEncodePlanFunc{wrapUUID}, m.TryWrapEncodePlanFuncs...)

	return nil
}

func wrapUUID(value any) (plan pgtype.WrappedEncodePlanNextSetter, next any, ok bool) {
	switch id := value.(type) {
	case uuid.UUID:
		return &encodeUUID{}, bytes16(id), true
	case *uuid.UUID:
		if id == nil { // a sample array element: only its type matters
			id = &uuid.UUID{}
		}

		return &encodeUUID{}, bytes16(*id), true
	default:
		return nil, nil, false
	}
}

// bytes16 implements pgtype.UUIDValuer.
type bytes16 uuid.UUID

// UUIDValue implements pgtype.UUIDValuer.
func (b bytes16) UUIDValue() (pgtype.UUID, error) { return pgtype.UUID{Bytes: b, Valid: true}, nil }

// encodeUUID implements pgtype.WrappedEncodePlanNextSetter.
type encodeUUID struct{ next pgtype.EncodePlan }

// SetNext implements pgtype.WrappedEncodePlanNextSetter.
func (p *encodeUUID) SetNext(next pgtype.EncodePlan) { p.next = next }

// Encode implements pgtype.EncodePlan.
func (p *encodeUUID) Encode(value any, buf []byte) ([]byte, error) {
	switch id := value.(type) {
	case uuid.UUID:
		return p.next.Encode(bytes16(id), buf)
	case *uuid.UUID:
		return p.next.Encode(bytes16(*id), buf)
	default:
		return p.next.Encode(value, buf)
	}
}
