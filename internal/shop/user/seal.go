package user

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/millracehq/millrace/internal/engine/eventstore"
)

// keySize selects AES-256.
const keySize = 32

// errSealed reports that the key for sealed data has been destroyed.
var errSealed = errors.New("the key for this data has been destroyed")

// keyring seals and opens the personal data of one user with AES-256-GCM and a
// random nonce as prefix (NIST SP 800-38D). User and event type are additional
// data, so no sealed body can replace another.
type keyring struct {
	id   string
	aead cipher.AEAD // nil once the key has been destroyed
}

func newKey() []byte {
	key := make([]byte, keySize)
	_, _ = rand.Read(key) // never fails: crypto/rand

	return key
}

func newKeyring(id string, key []byte) (keyring, error) {
	if key == nil {
		return keyring{id: id}, nil
	}

	block, err := aes.NewCipher(key)
	if err != nil {
		return keyring{}, fmt.Errorf("key of user %s: %w", id, err)
	}

	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return keyring{}, fmt.Errorf("key of user %s: %w", id, err)
	}

	return keyring{id: id, aead: aead}, nil
}

// sealed is the stored body of an event or a snapshot.
type sealed struct {
	kind string
	Box  []byte `json:"sealed"`
}

// EventType names the type in the store.
func (s sealed) EventType() string { return s.kind }

func (k keyring) context(kind string) []byte { return []byte(k.id + "\x00" + kind) }

func (k keyring) seal(kind string, body any) (sealed, error) {
	if k.aead == nil {
		return sealed{}, errSealed
	}

	plain, err := json.Marshal(body)
	if err != nil {
		return sealed{}, fmt.Errorf("encoding %s: %w", kind, err)
	}

	return sealed{kind: kind, Box: k.aead.Seal(nil, nil, plain, k.context(kind))}, nil //nolint:gosec // the cipher adds a random nonce
}

func (k keyring) open(kind string, data []byte) (json.RawMessage, error) {
	if k.aead == nil {
		return nil, errSealed
	}

	var s sealed
	if err := json.Unmarshal(data, &s); err != nil {
		return nil, fmt.Errorf("reading sealed %s: %w", kind, err)
	}

	plain, err := k.aead.Open(nil, nil, s.Box, k.context(kind))
	if err != nil {
		return nil, fmt.Errorf("opening sealed %s of user %s: %w", kind, k.id, err)
	}

	return plain, nil
}

// record returns the event as it is stored: sealed, unless it is the erasure.
func (k keyring) record(data eventstore.Data) (eventstore.Data, error) {
	if _, open := data.(Erased); open {
		return data, nil
	}

	return k.seal(data.EventType(), data)
}

// decode reverses record. For an erased user only the event type remains.
func (k keyring) decode(e eventstore.Event) (eventstore.Data, error) {
	if e.Type != (Erased{}).EventType() {
		plain, err := k.open(e.Type, e.Data)
		if errors.Is(err, errSealed) {
			return forgotten{kind: e.Type}, nil
		}

		if err != nil {
			return nil, err
		}

		e.Data = plain
	}

	return types.Decode(e)
}

// forgotten is an event whose data is unreadable.
type forgotten struct{ kind string }

// EventType names the type in the store.
func (f forgotten) EventType() string { return f.kind }
