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

// errSealed says that the key of sealed data is destroyed.
var errSealed = errors.New("the key of this data was destroyed")

// keyring seals and opens the personal data of one user: AES-256-GCM with a
// random nonce in front (NIST SP 800-38D), bound to the user and the type so
// that no sealed body can stand for another.
type keyring struct {
	id   string
	aead cipher.AEAD // nil once the key is destroyed
}

func newKey() []byte {
	key := make([]byte, keySize)
	_, _ = rand.Read(key) // it never fails: crypto/rand

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

	aead, err := cipher.NewGCM(block)
	if err != nil {
		return keyring{}, fmt.Errorf("key of user %s: %w", id, err)
	}

	return keyring{id: id, aead: aead}, nil
}

// sealed is the body of an event, or of a snapshot, as the store has it.
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

	nonce := make([]byte, k.aead.NonceSize(), k.aead.NonceSize()+len(plain)+k.aead.Overhead())
	_, _ = rand.Read(nonce) // it never fails: crypto/rand

	return sealed{kind: kind, Box: k.aead.Seal(nonce, nonce, plain, k.context(kind))}, nil
}

func (k keyring) open(kind string, data []byte) (json.RawMessage, error) {
	if k.aead == nil {
		return nil, errSealed
	}

	var s sealed
	if err := json.Unmarshal(data, &s); err != nil {
		return nil, fmt.Errorf("reading sealed %s: %w", kind, err)
	}

	if len(s.Box) < k.aead.NonceSize() {
		return nil, fmt.Errorf("reading sealed %s: has %d bytes, expected at least %d", kind, len(s.Box), k.aead.NonceSize())
	}

	nonce, box := s.Box[:k.aead.NonceSize()], s.Box[k.aead.NonceSize():]

	plain, err := k.aead.Open(nil, nonce, box, k.context(kind))
	if err != nil {
		return nil, fmt.Errorf("opening sealed %s of user %s: %w", kind, k.id, err)
	}

	return plain, nil
}

// record returns what the store gets: everything but the erasure is sealed.
func (k keyring) record(data eventstore.Data) (eventstore.Data, error) {
	if _, open := data.(Erased); open {
		return data, nil
	}

	return k.seal(data.EventType(), data)
}

// decode returns a stored event as it was before record. Of an erased user the
// type and the place are left.
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
