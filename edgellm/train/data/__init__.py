"""Training data: from files to documents whose tokens are to be learnt.

vocabulary     a model's tokenizer and chat template
files/         the records of a file, whatever its format
kinds          what a record is, told by its keys: a chat, a pair of answers, a text
chats          a chat as tokens, and which of them are answers
encoder        examples as documents, within the longest length
dataset        all of some files, counted
order          batches, passes and the validation split
spelling       documents as text again, for people
"""
