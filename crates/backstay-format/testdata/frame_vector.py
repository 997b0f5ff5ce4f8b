"""Seals b"hello" by the text of docs/format.md, with Python's `cryptography` instead of Backstay's code.

Prints the hexadecimal text that stands in frame_vector.hex.
"""
import hashlib

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF


def derive(key, salt, info, length):
    return HKDF(algorithm=hashes.SHA256(), length=length, salt=salt, info=info).derive(key)


data_key, salt, place = bytes([1] * 32), bytes([3] * 32), b"a"
key_id = derive(data_key, b"", b"backstay/v1/key-id", 10)
object_key = derive(data_key, salt, b"backstay/v1/object", 32)
header = b"BACKSTAY" + bytes([1, 1, 18, 0]) + key_id + salt + len(place).to_bytes(2, "big") + place
nonce = bytes(7) + (0).to_bytes(4, "big") + bytes([1])
frame = AESGCM(object_key).encrypt(nonce, b"hello", hashlib.sha256(header).digest())
print((header + frame).hex())
