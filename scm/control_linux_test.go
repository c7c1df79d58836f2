package scm

import (
	"encoding/binary"
	"reflect"
	"testing"

	"golang.org/x/sys/unix"
)

// controlMessage is one control message with its padding.
func controlMessage(level, typ int32, data ...byte) []byte {
	b := make([]byte, unix.CmsgSpace(len(data)))
	h := unix.Cmsghdr{Level: level, Type: typ}
	h.SetLen(unix.CmsgLen(len(data)))
	copy(b, headerBytes(&h))
	copy(b[headerSize:], data)
	return b
}

func ints(values ...int32) []byte {
	var b []byte
	for _, v := range values {
		b = binary.NativeEndian.AppendUint32(b, uint32(v))
	}
	return b
}

func rightsMessage(values ...int32) []byte {
	return controlMessage(unix.SOL_SOCKET, unix.SCM_RIGHTS, ints(values...)...)
}

// withLen overwrites the length in the first header of b.
func withLen(b []byte, n int) []byte {
	var h unix.Cmsghdr
	copy(headerBytes(&h), b)
	h.SetLen(n)
	copy(b, headerBytes(&h))
	return b
}

type found struct {
	fd  int
	typ int32
}

func readAll(b []byte) (all []found, malformed bool) {
	r := controlReader{rest: b}
	for {
		fd, typ, ok := r.next()
		if !ok {
			return all, r.malformed
		}
		all = append(all, found{fd, typ})
	}
}

func join(parts ...[]byte) []byte {
	var all []byte
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

var (
	credentials = controlMessage(unix.SOL_SOCKET, unix.SCM_CREDENTIALS, ints(1, 2, 3)...)
	pidfd       = controlMessage(unix.SOL_SOCKET, unix.SCM_PIDFD, ints(77)...)
	foreign     = controlMessage(unix.SOL_UDP, unix.SCM_RIGHTS, ints(5)...) // another protocol's 1
)

var controlTests = []struct {
	name      string
	b         []byte
	want      []found
	malformed bool
}{
	{name: "nothing"},
	{name: "one", b: rightsMessage(3), want: []found{{3, unix.SCM_RIGHTS}}},
	{name: "odd number", b: rightsMessage(3, 4, 5), want: []found{{3, unix.SCM_RIGHTS}, {4, unix.SCM_RIGHTS}, {5, unix.SCM_RIGHTS}}},
	{name: "two messages", b: join(rightsMessage(3), rightsMessage(9)), want: []found{{3, unix.SCM_RIGHTS}, {9, unix.SCM_RIGHTS}}},
	{name: "among others", b: join(credentials, rightsMessage(3), pidfd, foreign, rightsMessage(9)),
		want: []found{{3, unix.SCM_RIGHTS}, {77, unix.SCM_PIDFD}, {9, unix.SCM_RIGHTS}}},
	{name: "empty message", b: join(rightsMessage(), rightsMessage(3)), want: []found{{3, unix.SCM_RIGHTS}}},
	{name: "no padding at the end", b: rightsMessage(3)[:unix.CmsgLen(4)], want: []found{{3, unix.SCM_RIGHTS}}},
	{name: "shorter than a header", b: join(rightsMessage(3), make([]byte, headerSize-1)), want: []found{{3, unix.SCM_RIGHTS}}},
	{name: "length 0", b: join(rightsMessage(3), make([]byte, headerSize)), want: []found{{3, unix.SCM_RIGHTS}}, malformed: true},
	{name: "length below the header", b: withLen(rightsMessage(3), headerSize-1), malformed: true},
	{name: "length beyond the end", b: withLen(rightsMessage(3), 1000), malformed: true},
	{name: "huge length", b: withLen(rightsMessage(3), -1), malformed: true},
	{name: "half a descriptor", b: join(controlMessage(unix.SOL_SOCKET, unix.SCM_RIGHTS, append(ints(3), 1, 2)...), rightsMessage(9)),
		want: []found{{3, unix.SCM_RIGHTS}, {9, unix.SCM_RIGHTS}}, malformed: true},
}

func TestControlReader(t *testing.T) {
	for _, tt := range controlTests {
		t.Run(tt.name, func(t *testing.T) {
			got, malformed := readAll(tt.b)
			if !reflect.DeepEqual(got, tt.want) || malformed != tt.malformed {
				t.Errorf("got %v, malformed %v; want %v, %v", got, malformed, tt.want, tt.malformed)
			}
		})
	}
}

// What putRights writes is what x/sys would write, and what is read again.
func TestPutRights(t *testing.T) {
	b := make([]byte, sendControlSize)
	for _, n := range []int{0, 1, 2, 3, 100, MaxFDs} {
		for i := range b {
			b[i] = 0xff
		}
		fds := make([]int, n)
		for i := range fds {
			fds[i] = 1000 + i
		}
		got := b[:putRights(b, fds)]
		if n == 0 {
			if len(got) != 0 {
				t.Errorf("%d bytes for no descriptors", len(got))
			}
			continue
		}
		if want := unix.UnixRights(fds...); string(got[:unix.CmsgLen(n*fdSize)]) != string(want[:unix.CmsgLen(n*fdSize)]) || len(got) != len(want) {
			t.Errorf("%d descriptors: got % x, want % x", n, got, want)
		}
		all, malformed := readAll(got)
		if len(all) != n || malformed {
			t.Errorf("%d descriptors: read %d, malformed %v", n, len(all), malformed)
		}
	}
}

func openNull(t *testing.T) int32 {
	t.Helper()
	fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return int32(fd)
}

func isOpen(fd int32) bool {
	_, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	return err == nil
}

// Several messages fill one slice; what does not fit and what nobody asked for
// is closed.
func TestTakeRights(t *testing.T) {
	a, b, c, d := openNull(t), openNull(t), openNull(t), openNull(t)
	control := join(rightsMessage(a), controlMessage(unix.SOL_SOCKET, unix.SCM_PIDFD, ints(d)...),
		controlMessage(unix.SOL_SOCKET, unix.SCM_PIDFD, ints(-3)...), rightsMessage(b, c))
	fds := make([]int, 2)
	got := takeRights(control, fds)
	if want := (rights{n: 2, excess: true}); got != want {
		t.Errorf("takeRights = %+v, want %+v", got, want)
	}
	if fds[0] != int(a) || fds[1] != int(b) || !isOpen(a) || !isOpen(b) {
		t.Errorf("descriptors = %v, want %d and %d, open", fds, a, b)
	}
	if isOpen(c) || isOpen(d) {
		t.Error("a descriptor that did not fit, or the pidfd, is still open")
	}
	unix.Close(int(a))
	unix.Close(int(b))
}

func FuzzParseControl(f *testing.F) {
	for _, tt := range controlTests {
		f.Add(tt.b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		// A copy of exact capacity: reading on would panic.
		b = append(make([]byte, 0, len(b)), b...)[:len(b):len(b)]
		before := string(b)
		got, malformed := readAll(b)
		again, malformedAgain := readAll(b)
		if !reflect.DeepEqual(got, again) || malformed != malformedAgain {
			t.Fatalf("first %v, %v, then %v, %v", got, malformed, again, malformedAgain)
		}
		if string(b) != before {
			t.Fatal("the input was changed")
		}
		if len(got) > len(b)/fdSize {
			t.Fatalf("%d descriptors in %d bytes", len(got), len(b))
		}

		// x/sys knows the same format.
		msgs, err := unix.ParseSocketControlMessage(b)
		if err != nil {
			if !malformed {
				t.Fatalf("x/sys says %v, we found nothing wrong", err)
			}
			return
		}
		var want []found
		wrong := false
		for _, m := range msgs {
			if m.Header.Level != unix.SOL_SOCKET || m.Header.Type != unix.SCM_RIGHTS && m.Header.Type != unix.SCM_PIDFD {
				continue
			}
			for len(m.Data) >= fdSize {
				want = append(want, found{int(int32(binary.NativeEndian.Uint32(m.Data))), m.Header.Type})
				m.Data = m.Data[fdSize:]
			}
			wrong = wrong || len(m.Data) > 0
		}
		if !reflect.DeepEqual(got, want) || malformed != wrong {
			t.Fatalf("got %v, %v; x/sys finds %v, %v", got, malformed, want, wrong)
		}
	})
}
